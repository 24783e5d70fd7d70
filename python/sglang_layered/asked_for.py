"""What a server is started with, in the terms in which starts are refused (`refusals.py`)."""

from dataclasses import dataclass
from typing import Any

from sglang_layered.config import LayeredConfig
from sglang_layered.core.capability import QUESTIONS, Capability
from sglang_layered.models.refused import has_recurrent_layers, model_refusal, untried_sparse_attention
from sglang_layered.refused_flags import UNASKED


@dataclass(frozen=True, slots=True)
class Start:
    """What a server is started with; its model is read when a row asks for it."""

    config: LayeredConfig
    server_args: Any

    @property
    def model_config(self) -> Any:
        """SGLang's ModelConfig."""
        from sglang_layered.upstream.releases import arguments

        return arguments.model_config_of(self.server_args)

    @property
    def attention_backends(self) -> tuple[str, ...]:
        """Of prompts and of decode rows."""
        from sglang_layered.upstream.releases import arguments

        return arguments.attention_backends_of(self.server_args)

    def has(self, flag: str) -> bool:
        """True when the arguments ask for what a flag is for."""
        value = getattr(self.server_args, flag.removeprefix("--").replace("-", "_"), None)
        if flag == "--enable-lora":
            value = value or getattr(self.server_args, "lora_paths", None)
        return bool(value) and not UNASKED.get(flag, lambda _: False)(value)

    @property
    def shared_file(self) -> str | None:
        """A listener's file that several pipeline stages would write."""
        specs = self.config.layered_listeners or () if self.has("--pp-size") else ()
        return next((spec for spec in specs if "=" in spec and "{pp}" not in spec), None)

    @property
    def is_recurrent(self) -> bool:
        """True for a model that keeps a state per request and layer."""
        return has_recurrent_layers(self.model_config)

    @property
    def model_refusal(self) -> str | None:
        """Why layered mode cannot serve the model."""
        return model_refusal(self.model_config, self.attention_backends)

    @property
    def untried_sparse_attention(self) -> str | None:
        """The flags that take a model with an indexer to attention on which no tokens were compared."""
        return untried_sparse_attention(self.model_config, self.server_args)

    @property
    def speculates(self) -> bool:
        """True when layered steps verify drafts."""
        return self.config.is_layered and self.server_args.speculative_algorithm is not None

    def executes(self, *names: str) -> bool:
        """True when layered steps are asked to run in one of these ways."""
        return self.config.is_layered and self.config.layered_execution in names

    def has_unread(self, limit: str, capability: Capability) -> bool:
        """True for a limit that no policy would act on; one that answers questions sees both."""
        is_read = self.config.policy_can(capability, *QUESTIONS)
        return getattr(self.config, limit) is not None and not is_read

    @property
    def orders_queue(self) -> bool:
        """True with a policy that says in which order prompts are admitted."""
        return self.config.policy_can(Capability.ORDERS_QUEUE)
