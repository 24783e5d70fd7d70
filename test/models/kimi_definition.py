"""Kimi-Linear and Kimi-K3 by definition, in float64: a token from all before it, no cache, no kernel of ours.

transformers has no such models and the released code asks for CUDA, so this is the oracle in their place.
Written from the reports of Kimi-Linear (arXiv 2510.26692) and of K3's residuals (arXiv 2603.15031). Gates,
activation and small experts of K3 are in neither: they are what SGLang's names and settings say. Names of
tensors are those of the released files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


class KimiLinear:
    """One checkpoint."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.config: dict[str, Any] = config.get("text_config", config)
        weights = load_file(folder / "model.safetensors")
        self.weights = {
            name.removeprefix("language_model."): weight.double() for name, weight in weights.items()
        }

    def best(self, prompt: list[int], answer: list[int]) -> list[int]:
        """The best token at each place of the answer, given all before it: a greedy answer is its own."""
        return self.logits(prompt + answer[:-1])[len(prompt) - 1 :].argmax(-1).tolist()

    def logits(self, tokens: list[int]) -> Tensor:
        """[tokens, vocabulary], of what follows each."""
        rows = self.weights["model.embed_tokens.weight"][tokens]
        for index in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{index}"
            rows = rows + self.attention(rows, index, at)
            rows = rows + self.feed_forward(rows, index, at)
        return self.linear(self.norm(rows, "model.norm"), "lm_head")

    def attention(self, rows: Tensor, index: int, at: str) -> Tensor:
        is_delta = index + 1 in self.config["linear_attn_config"]["kda_layers"]
        attend = self.delta_attention if is_delta else self.latent_attention
        return attend(self.norm(rows, f"{at}.input_layernorm"), f"{at}.self_attn")

    def feed_forward(self, rows: Tensor, index: int, at: str) -> Tensor:
        normed = self.norm(rows, f"{at}.post_attention_layernorm")
        if index < self.config["first_k_dense_replace"]:
            return self.mlp(normed, f"{at}.mlp", ("gate_proj", "up_proj", "down_proj"))
        return self.experts(normed, f"{at}.block_sparse_moe")

    def linear(self, rows: Tensor, name: str) -> Tensor:
        return rows @ self.weights[f"{name}.weight"].T

    def norm(self, rows: Tensor, name: str) -> Tensor:
        mean_square = (rows**2).mean(-1, keepdim=True)
        return rows / (mean_square + self.config["rms_norm_eps"]).sqrt() * self.weights[f"{name}.weight"]

    def mlp(self, rows: Tensor, at: str, names: tuple[str, str, str]) -> Tensor:
        gate, up, down = (f"{at}.{name}" for name in names)
        return self.linear(self.gated(self.linear(rows, gate), self.linear(rows, up)), down)

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return gate * torch.sigmoid(gate) * up

    def experts(self, rows: Tensor, at: str) -> Tensor:
        """The best by score + bias share what their scores say; the shared expert sees every row."""
        scores = torch.sigmoid(self.linear(rows, f"{at}.gate"))
        wanted = scores + self.weights[f"{at}.gate.e_score_correction_bias"]
        chosen = wanted.argsort(descending=True)[:, : self.config["num_experts_per_token"]]
        shares = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
        shares = shares / shares.sum(-1, keepdim=True) * self.config["routed_scaling_factor"]
        output = self.mlp(rows, f"{at}.shared_experts", ("gate_proj", "up_proj", "down_proj"))
        return output + self.routed(rows, shares, at)

    def routed(self, rows: Tensor, shares: Tensor, at: str) -> Tensor:
        """What the experts say, in these shares [tokens, experts]."""
        output = torch.zeros_like(rows)
        for expert in range(self.config["num_experts"]):
            given = self.mlp(rows, f"{at}.experts.{expert}", ("w1", "w3", "w2"))
            output = output + shares[:, expert, None] * given
        return output

    def latent_attention(self, rows: Tensor, at: str) -> Tensor:
        """Keys and values of all heads from one latent row, beside a part of the key that heads share."""
        heads, own, shared, value, rank = (
            self.config[name]
            for name in (
                "num_attention_heads",
                "qk_nope_head_dim",
                "qk_rope_head_dim",
                "v_head_dim",
                "kv_lora_rank",
            )
        )
        query = self.query(rows, at).view(-1, heads, own + shared)
        latent, key_part = self.linear(rows, f"{at}.kv_a_proj_with_mqa").split([rank, shared], dim=-1)
        expanded = self.linear(self.norm(latent, f"{at}.kv_a_layernorm"), f"{at}.kv_b_proj")
        keys, values = expanded.view(-1, heads, own + value).split([own, value], dim=-1)
        keys = torch.cat([keys, key_part[:, None].expand(-1, heads, -1)], dim=-1)
        scores = torch.einsum("qhd,khd->hqk", query, keys) / (own + shared) ** 0.5
        later = torch.ones(len(rows), len(rows), dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        output = torch.einsum("hqk,khd->qhd", weights, values).flatten(1)
        return self.linear(self.output_gate(rows, at) * output, f"{at}.o_proj")

    def query(self, rows: Tensor, at: str) -> Tensor:
        return self.linear(rows, f"{at}.q_proj")

    def output_gate(self, rows: Tensor, at: str) -> Tensor:
        """Of latent attention."""
        return rows.new_ones(())

    def delta_attention(self, rows: Tensor, at: str) -> Tensor:
        """Each head has one matrix, which a token decays, corrects and reads."""
        linear = self.config["linear_attn_config"]
        shape = (len(rows), linear["num_heads"], linear["head_dim"])
        query, key, value = (self.convolved(rows, f"{at}.{part}", shape) for part in "qkv")
        query, key = (part / ((part**2).sum(-1, keepdim=True) + 1e-6).sqrt() for part in (query, key))
        forget = self.linear(self.linear(rows, f"{at}.f_a_proj"), f"{at}.f_b_proj")
        decay = self.log_decay((forget + self.weights[f"{at}.dt_bias"]).view(shape), at).exp()
        step = torch.sigmoid(self.linear(rows, f"{at}.b_proj"))
        matrix, read = rows.new_zeros(shape[1], shape[2], shape[2]), []  # [head, key channel, value channel]
        for token in range(len(rows)):
            matrix = matrix * decay[token, :, :, None]
            wrong = value[token] - torch.einsum("hk,hkv->hv", key[token], matrix)
            matrix = matrix + torch.einsum("h,hk,hv->hkv", step[token], key[token], wrong)
            read.append(torch.einsum("hk,hkv->hv", query[token], matrix) / shape[2] ** 0.5)
        gate = torch.sigmoid(self.delta_gate(rows, at))
        output = self.norm(torch.stack(read), f"{at}.o_norm") * gate.view(shape)
        return self.linear(output.flatten(1), f"{at}.o_proj")

    def log_decay(self, opened: Tensor, at: str) -> Tensor:
        """Of each key channel, from its opening [tokens, heads, channels]."""
        return -torch.log1p(opened.exp()) * self.weights[f"{at}.A_log"].exp().view(-1, 1)

    def delta_gate(self, rows: Tensor, at: str) -> Tensor:
        return self.linear(self.linear(rows, f"{at}.g_a_proj"), f"{at}.g_b_proj")

    def convolved(self, rows: Tensor, at: str, shape: tuple[int, ...]) -> Tensor:
        """Every channel's last inputs, weighted; the newest input meets the last weight."""
        inputs, weight = self.linear(rows, f"{at}_proj"), self.weights[f"{at}_conv1d.weight"][:, 0]
        padded = torch.cat([inputs.new_zeros(weight.shape[1] - 1, inputs.shape[1]), inputs])
        output = sum(padded[lag : lag + len(rows)] * weight[:, lag] for lag in range(weight.shape[1]))
        return (output * torch.sigmoid(output)).view(shape)


class KimiK3(KimiLinear):
    """The language model: residuals weighed by blocks of layers, other gates, experts in a smaller space."""

    def logits(self, tokens: list[int]) -> Tensor:
        """What a layer reads is a weighted mean of the blocks before and of the sum in the open one."""
        blocks: list[Tensor] = []
        rows = self.weights["model.embed_tokens.weight"][tokens]
        for index in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{index}"
            output = self.attention(self.weighed(blocks, rows, f"{at}.self_attention_res"), index, at)
            if index % self.config["attn_res_block_size"] == 0:
                blocks.append(rows)
                rows = output
            else:
                rows = rows + output
            rows = rows + self.feed_forward(self.weighed(blocks, rows, f"{at}.mlp_res"), index, at)
        read = self.weighed(blocks, rows, "model.output_attn_res")
        return self.linear(self.norm(read, "model.norm"), "lm_head")

    def weighed(self, blocks: list[Tensor], rows: Tensor, at: str) -> Tensor:
        values = torch.stack([*blocks, rows])
        scores = self.linear(self.norm(values, f"{at}_norm"), f"{at}_proj")
        return (scores.softmax(0) * values).sum(0)

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        most, most_up = self.config["activation_situ_beta"], self.config["activation_situ_linear_beta"]
        return most * torch.tanh(gate / most) * torch.sigmoid(gate) * most_up * torch.tanh(up / most_up)

    def routed(self, rows: Tensor, shares: Tensor, at: str) -> Tensor:
        small = super().routed(self.linear(rows, f"{at}.routed_expert_down_proj"), shares, at)
        return self.linear(self.norm(small, f"{at}.routed_expert_norm"), f"{at}.routed_expert_up_proj")

    def query(self, rows: Tensor, at: str) -> Tensor:
        small = self.norm(self.linear(rows, f"{at}.q_a_proj"), f"{at}.q_a_layernorm")
        return self.linear(small, f"{at}.q_b_proj")

    def output_gate(self, rows: Tensor, at: str) -> Tensor:
        return torch.sigmoid(self.linear(rows, f"{at}.g_proj"))

    def log_decay(self, opened: Tensor, at: str) -> Tensor:
        linear = self.config["linear_attn_config"]
        rates = self.weights[f"{at}.A_log"][: linear["num_heads"]].exp()
        return linear["gate_lower_bound"] * torch.sigmoid(rates[:, None] * opened)

    def delta_gate(self, rows: Tensor, at: str) -> Tensor:
        return self.linear(rows, f"{at}.g_proj")
