"""What a block's computation needs, whatever runs it: multiply-accumulates and bytes, of the model's own
sizes (no padding)."""

from dataclasses import dataclass

from golden.spec import BlockParams, BlockSpec, Expert, MxTensor


@dataclass(frozen=True)
class Need:
    """macs; bytes that must cross the DRAM pins in each direction."""

    macs: int = 0
    read: int = 0
    written: int = 0

    def __add__(self, other: "Need") -> "Need":
        return Need(self.macs + other.macs, self.read + other.read, self.written + other.written)

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def bound(self, macs_per_cycle: int, port_bytes: int) -> float:
        """Cycles that no schedule can beat.

        The array and both directions of the port work at the same time.
        """
        return max(self.macs / macs_per_cycle, self.read / port_bytes, self.written / port_bytes)


def _tensors(params: BlockParams) -> list[MxTensor]:
    return [params.wq, params.wk, params.wv, params.wo, *([params.router] if params.router else [])]


def _expert(e: Expert) -> list[MxTensor]:
    return [e.gate, e.up, e.down]


def _macs(w: MxTensor) -> int:
    return w.outputs * w.inputs


def _vectors(params: BlockParams) -> int:
    """Bytes of norms, biases and sinks."""
    vectors = [
        params.norm1,
        params.norm2,
        params.bq,
        params.bk,
        params.bv,
        params.bo,
        params.sinks,
        params.router_bias,
    ]
    for e in params.experts:
        vectors += [e.gate_bias, e.up_bias, e.down_bias]
    return sum(v.nbytes for v in vectors if v is not None)


def block_need(spec: BlockSpec, params: BlockParams, first: int, tokens: int, steps: bool) -> Need:
    """Need of `tokens` tokens at positions first.. : as one prefill, or one by one (`steps`: the weights are
    read for each token, only the chosen experts' of them, and the keys and values in sight come from DRAM).
    """
    per_token = spec.kv_heads * spec.head_dim + spec.kv_scales
    chosen = spec.top_k if spec.experts else 1
    sights = [min(first + i + 1, spec.window or first + i + 1) for i in range(tokens)]
    linear = sum(map(_macs, _tensors(params))) + chosen * sum(map(_macs, _expert(params.experts[0])))
    macs = tokens * linear + sum(2 * spec.heads * spec.head_dim * n for n in sights)
    fixed = sum(w.needed_bytes for w in _tensors(params))
    one = sum(w.needed_bytes for w in _expert(params.experts[0]))
    row = 4 * spec.hidden
    written = tokens * (row + 2 * per_token)
    if steps:
        past = sum(2 * per_token * (n - 1) for n in sights)
        return Need(macs, tokens * (fixed + chosen * one + row) + past + _vectors(params), written)
    return Need(macs, fixed + len(params.experts) * one + tokens * row + _vectors(params), written)
