"""Sizes of one decoder layer, and what rows cost there; it knows no model, tensor or device."""

from dataclasses import dataclass

# FLOP that an accelerator does while it reads one byte. Layers of a prompt's group do far more, so the figure
# only matters for groups of few rows; 184 is that of an H200 (sglang_layered_lab.cost.roofline).
FLOP_PER_BYTE = 184.0


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Sizes in parameters; `param_bytes` is the mean width of one, `expert_param_bytes` that in experts.

    `dense_params` are those that every row uses: attention, router, shared experts or the dense MLP. A dense
    layer has no experts. `attention_width` is query heads x (key + value dimension) / 2; `window` is how many
    tokens a row attends to at most, None for all. Without `expert_param_bytes` experts are as wide as the
    rest. In a quantized model both widths count scales and zero points, so they are no whole numbers.
    """

    dense_params: int
    num_experts: int = 0
    num_experts_per_token: int = 0
    expert_params: int = 0
    attention_width: int = 0
    window: int | None = None
    param_bytes: float = 2.0
    expert_param_bytes: float | None = None

    @property
    def expert_bytes(self) -> float:
        """Bytes of all experts."""
        width = self.param_bytes if self.expert_param_bytes is None else self.expert_param_bytes
        return self.num_experts * self.expert_params * width

    def bytes_read(self, num_rows: int) -> float:
        """Weight bytes that `num_rows` rows read when each chooses its experts uniformly."""
        if not self.num_experts:
            return self.dense_params * self.param_bytes
        untouched = (1 - self.num_experts_per_token / self.num_experts) ** num_rows
        return self.dense_params * self.param_bytes + (1 - untouched) * self.expert_bytes

    def flop(self, num_rows: int, context_tokens: float) -> float:
        """FLOP of `num_rows` rows that see `context_tokens` tokens each, on average."""
        seen = context_tokens if self.window is None else min(context_tokens, self.window)
        params = self.dense_params + self.num_experts_per_token * self.expert_params
        return num_rows * (2 * params + 4 * self.attention_width * seen)

    def cost(self, num_rows: int, context_tokens: float, flop_per_byte: float = FLOP_PER_BYTE) -> float:
        """Time of the layer in bytes read: the longer of reading and computing."""
        return max(self.bytes_read(num_rows), self.flop(num_rows, context_tokens) / flop_per_byte)
