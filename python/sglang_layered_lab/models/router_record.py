"""Run a model over prompts that keep to one topic each, and record what its routers see and choose."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.router_apply import kind_of, layer_of
from sglang_layered_lab.models.router_bias import RouterBias
from sglang_layered_lab.models.router_coverage import RouterStates, join

REQUESTS_AT_ONCE = 64  # what a decode forward holds
GAUGED = 2  # seed of the prompts that gauge() runs; callers of record() have theirs


@dataclass(frozen=True, slots=True)
class ProbeSizes:
    """How many tokens a recording runs."""

    num_requests: int = 64  # for decode rows
    start_tokens: int = 32  # prompt of such a request
    num_steps: int = 4  # tokens that it then goes on for, each of them a decode row
    num_prompts: int = 8
    prompt_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class Recording:
    """What one run saw."""

    decode: RouterStates  # a group for each step
    prompts: RouterStates  # a group for each prompt
    stays_in_topic: float  # part of the continued tokens that are of their prompt's topic


class RoutedModel:
    """A mixture-of-experts model in memory, with taps before its routers and its head.

    Raises:
        ModelRecipeError: the folder cannot be loaded.
    """

    def __init__(self, folder: Path) -> None:
        self.model = _load(folder)
        self.num_chosen: int = self.model.config.num_experts_per_tok
        self.parameters: dict[str, torch.Tensor] = dict(self.model.named_parameters())
        self.routers: dict[int, Any] = {
            layer_of(name): module for name, module in self.model.named_modules() if kind_of(name) == "router"
        }
        self._seen: dict[Any, torch.Tensor] = {}  # by layer, and "head": input of the latest forward
        for key, module in [*self.routers.items(), ("head", self.model.lm_head)]:
            module.register_forward_pre_hook(
                lambda _, inputs, key=key: self._seen.update({key: inputs[0].flatten(0, -2)})
            )

    @torch.inference_mode()
    def gauge(self, bias: RouterBias) -> tuple[dict[int, float], float]:
        """Return the weights on a set channel that move a logit by one standard deviation: routers', head's.

        The bias is in the model, with zero scales and no topic bonus.
        """
        tokens = draw_tokens(bias, (8, 256), np.random.default_rng([bias.seed, GAUGED]))
        logits = self.model(input_ids=tokens, use_cache=False).logits
        states = self._states(tokens, bias)
        spread = states.own_logits.std(axis=(1, 2, 3)) / states.channel.mean(axis=(1, 2))
        head = logits.float().std() / self._seen["head"][:, bias.first_channel].float().mean()
        return dict(zip(self.routers, spread.tolist(), strict=True)), float(head)

    @torch.inference_mode()
    def record(self, bias: RouterBias, sizes: ProbeSizes, seed: int) -> Recording:
        """Run fresh prompts of the bias' topics; the same seed draws the same prompts."""
        generator = np.random.default_rng([bias.seed, seed])
        starts = draw_tokens(bias, (sizes.num_requests, sizes.start_tokens), generator)
        batches = [self._decode(batch, sizes.num_steps, bias) for batch in starts.split(REQUESTS_AT_ONCE)]
        decode = join(batches).turned()
        whole = draw_tokens(bias, (sizes.num_prompts, sizes.prompt_tokens), generator)
        prompts = [self._prompt(tokens, bias) for tokens in whole.split(1)]
        topics = bias.topics_of_tokens()
        stays = topics[decode.tokens] == topics[starts[:, 0].numpy()]
        return Recording(decode, join(prompts), float(stays.mean()))

    def _decode(self, tokens: torch.Tensor, num_steps: int, bias: RouterBias) -> RouterStates:
        """Go on greedily; [layers, requests, steps] of the tokens that were added."""
        output = self.model(input_ids=tokens, use_cache=True, logits_to_keep=1)
        steps = []
        for _ in range(num_steps):
            tokens = output.logits[:, -1:].argmax(-1)
            output = self.model(input_ids=tokens, use_cache=True, past_key_values=output.past_key_values)
            steps.append(self._states(tokens, bias).turned())
        return join(steps).turned()

    def _prompt(self, tokens: torch.Tensor, bias: RouterBias) -> RouterStates:
        self.model(input_ids=tokens, use_cache=False, logits_to_keep=1)
        return self._states(tokens, bias)

    def _states(self, tokens: torch.Tensor, bias: RouterBias) -> RouterStates:
        """What the routers saw in the latest forward, of [groups, tokens] ids."""
        own, channel, chosen = [], [], []
        for layer, router in self.routers.items():
            seen, weight = self._seen[layer], router.weight
            own_weight = weight.float()  # a copy unless the model is of float32
            own_weight = own_weight.index_fill(1, torch.arange(*bias.channels.indices(weight.shape[1])), 0.0)
            own.append(seen.float() @ own_weight.T)
            channel.append(seen[:, bias.first_channel].float())
            odds = torch.nn.functional.linear(seen, weight).softmax(-1, dtype=torch.float)
            highest = odds.topk(self.num_chosen).indices
            chosen.append(torch.zeros(odds.shape, dtype=torch.bool).scatter_(1, highest, True))
        shape = (len(own), *tokens.shape)
        return RouterStates(
            torch.stack(own).view(*shape, -1).numpy(),
            torch.stack(channel).view(shape).numpy(),
            torch.stack(chosen).view(*shape, -1).numpy(),
            tokens.numpy(),
        )


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True).eval()
    except Exception as error:  # transformers and safetensors raise of every kind
        raise ModelRecipeError(f"MODEL_DIR {folder} cannot be loaded: {error}") from error


def draw_tokens(bias: RouterBias, shape: tuple[int, int], generator: np.random.Generator) -> torch.Tensor:
    """Draw [prompts, tokens] ids, each prompt within one topic, topics in equal shares."""
    topics = generator.permutation(np.arange(shape[0]) % len(bias.topics))
    bounds = np.array(bias.topics)[topics]
    return torch.from_numpy(generator.integers(bounds[:, :1], bounds[:, 1:], size=shape))
