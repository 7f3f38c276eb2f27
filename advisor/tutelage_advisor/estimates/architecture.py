"""What a decoder is made of, as far as parameters, memory and time depend on it. No weights are needed."""

from __future__ import annotations

import functools
import math
from typing import Literal

import msgspec

Kind = Literal["attention", "mlp", "other", "head"]


class Linear(msgspec.Struct, frozen=True):
    """Linear layers of one name and shape, as many times as they occur in the model."""

    name: str
    "The last part of the module's name, e.g. `q_proj`: what PEFT matches `target_modules` with."
    inputs: int
    outputs: int
    count: int
    kind: Kind
    bias: bool = False
    shares_input: str = ""
    "Layers with the same non-empty mark read one and the same tensor (q, k and v do)."
    rank_factor: int = 1
    "What PEFT multiplies the rank with: 2 where it adapts two fused matrices."
    share: float = 1.0
    "The part of the tokens that pass through each: less than 1 for experts."

    @property
    def weights(self) -> int:
        """Parameters of all of them, biases left out."""
        return self.inputs * self.outputs * self.count

    @property
    def parameters(self) -> int:
        """Parameters of all of them."""
        return self.weights + (self.outputs * self.count if self.bias else 0)


class Experts(msgspec.Struct, frozen=True):
    """Mixture-of-experts weights, which transformers keep as stacked tensors rather than as linear layers."""

    layers: int
    number: int
    active: int
    "Experts that one token passes through."
    width: int
    "Intermediate width of one expert."
    parameters: int
    "All of them, routers left out."
    names: dict[str, str] = {}
    """By what names PEFT finds what transformers has fused (`gate_up`, `down`, `router`); empty where it adapts linear
    layers alone."""

    def adapted(self, hidden: int, wanted: set[str]) -> list[Linear]:
        """What LoRA adds to experts, as so many linear layers, when these names are among its targets.

        Raises:
            KeyError: when one of two fused matrices is named without the other.
        """
        parts = {
            "gate_up": (hidden, 2 * self.width, self.number, 2, self.active / self.number),
            "down": (self.width, hidden, self.number, 1, self.active / self.number),
            "router": (hidden, self.number, 1, 1, 1.0),
        }
        found = []
        for part, (inputs, outputs, copies, factor, share) in parts.items():
            needed = {name for name, meant in self.names.items() if meant == part}
            if needed and needed <= wanted:
                count = copies * self.layers
                found.append(Linear(part, inputs, outputs, count, "mlp", rank_factor=factor, share=share))
            elif needed & wanted:
                raise KeyError(" without ".join([*sorted(needed & wanted), *sorted(needed - wanted)]))
        return found

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through."""
        return self.parameters * self.active // self.number


class Architecture(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The inventory of a decoder."""

    family: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    longest: int
    "Most positions that the model was made for (0: not said)."
    linears: list[Linear]
    embedding: int
    "Parameters of the token embedding."
    other: int
    "All further parameters: norms, learned positions, routers, gates."
    tied: bool
    "Whether the output layer is the token embedding."
    experts: Experts | None = None
    norms: float = 2
    "Norms over the hidden size in one layer."
    norm_upcasts: bool = True
    "Whether norms are written out in Python with a float32 copy (RMSNorm), or fused (LayerNorm)."
    mlp_width: int = 0
    "Intermediate width that one token passes through in a layer."
    mlp_saved: float = 3
    "Tensors of that width that autograd keeps for the activation: gate, activated gate and up make 3."
    cached: int = 0
    "Values that one token adds to one layer's key-value cache."
    window: int = 0
    "Sliding attention window in tokens, 0 where every layer attends to everything."
    window_share: float = 0.0
    "Share of the layers that use the window."
    eager: bool = False
    "Whether attention is written out (soft-capped scores), so that scores are kept for the backward pass."

    @property
    def head(self) -> Linear | None:
        """The output layer, where it has weights of its own."""
        return next((linear for linear in self.linears if linear.kind == "head"), None)

    @functools.cached_property
    def parameters(self) -> int:
        """All parameters, tied ones counted once."""
        experts = self.experts.parameters if self.experts else 0
        return self.embedding + sum(linear.parameters for linear in self.linears) + experts + self.other

    @functools.cached_property
    def active_matrix_parameters(self) -> int:
        """Weights that one token is multiplied with, the output layer included, the embedding look-up not."""
        weights = sum(linear.weights for linear in self.linears)
        if self.head is None:
            weights += self.vocabulary * self.hidden
        return weights + (self.experts.active_parameters if self.experts else 0)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer, on average, rounded up."""
        outside = self.embedding + (self.head.parameters if self.head else 0)
        return math.ceil((self.parameters - outside) / self.layers)

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_size

    def cache_bytes(self, context: int, width: float) -> float:
        """Bytes of one sequence's key-value cache; layers with a sliding window keep no more than the window."""
        kept = min(context, self.window) if self.window else context
        windowed = self.layers * self.window_share
        return self.cached * width * (windowed * kept + (self.layers - windowed) * context)

    @property
    def key_value_width(self) -> int:
        """Width of all key heads together (the values' is the same)."""
        return self.key_value_heads * self.head_size

    def quantizable(self) -> int:
        """Parameters that bitsandbytes packs into 4 bits: every linear layer's weight but the output layer's."""
        return sum(linear.weights for linear in self.linears if linear.kind != "head")

    def targets(self, names: str | list[str]) -> list[Linear]:
        """The linear layers that LoRA attaches to.

        Args:
            names: `all-linear` (all but the output layer, as PEFT has it), `attention`, `mlp`, or layers by name.

        Raises:
            KeyError: with the first name that the model has no layer for.

        For some mixtures of experts PEFT takes the names of layers that transformers has fused (gate_proj, up_proj,
        down_proj, gate) for the experts and their router, and for nothing else.
        """
        key = names if isinstance(names, str) else tuple(names)
        if key not in self._targets:
            self._targets[key] = self._find_targets(names)
        return self._targets[key]

    @functools.cached_property
    def _targets(self) -> dict[str | tuple[str, ...], list[Linear]]:
        """What `targets` found before."""
        return {}

    def _find_targets(self, names: str | list[str]) -> list[Linear]:
        inner = [linear for linear in self.linears if linear.kind != "head"]
        fused = self.experts.names if self.experts else {}
        if names == "all-linear":
            wanted = {linear.name for linear in inner} | set(fused)
        elif isinstance(names, str) and names in ("attention", "mlp"):
            wanted = {linear.name for linear in inner if linear.kind == names}
            wanted |= {name for name, part in fused.items() if part != "router"} if names == "mlp" else set()
        else:
            wanted = {names} if isinstance(names, str) else set(names)
            inner = self.linears
        known = {linear.name for linear in inner} | set(fused)
        for name in sorted(wanted - known):
            raise KeyError(name)
        adapted = self.experts.adapted(self.hidden, wanted) if self.experts else []
        return [linear for linear in inner if linear.name in wanted and linear.name not in fused] + adapted


def lora_parameters(targets: list[Linear], rank: int) -> int:
    """r (in + out) for every layer: A is (r, in) and B is (out, r) (Hu et al. 2021, section 4.1)."""
    return sum(rank * one.rank_factor * (one.inputs + one.outputs) * one.count for one in targets)
