"""What a client saw of one request: raw times, nothing computed. Pure; pydantic makes JSON of it and back."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import Field, PlainSerializer


class Arrival(NamedTuple):
    """At `time_s` the client had `num_tokens` tokens of the request, this arrival's own included."""

    time_s: float
    num_tokens: int


# In JSON times are rounded to a microsecond.
Moment = Annotated[float, PlainSerializer(lambda time_s: round(time_s, 6))]
Arrivals = Annotated[
    tuple[Arrival, ...],
    PlainSerializer(lambda arrivals: [[round(each.time_s, 6), each.num_tokens] for each in arrivals]),
]


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """One request; all times are seconds since the run's zero, on the client's monotonic clock.

    `due_s` is when the arrival process wanted it sent and `sent_s` when the client sent it; the difference is
    the client's own lateness. `arrivals` grow in time and in tokens. `error` is set when it did not end as
    asked: its arrivals are then what came before.
    """

    request_id: Annotated[str, Field(alias="id")]
    due_s: Moment
    sent_s: Moment
    prompt_tokens: int
    max_output_tokens: int
    arrivals: Arrivals
    error: str | None = None
