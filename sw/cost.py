"""What the computation of a block or of a model needs, whatever runs it: multiply-accumulates and bytes, of
the model's own sizes (no padding)."""

from collections.abc import Sequence
from dataclasses import dataclass

from golden.spec import BlockParams, BlockSpec, Expert, ModelParams, ModelSpec, MxTensor


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
    return [e.up, e.down] if e.gate is None else [e.gate, e.up, e.down]


def _macs(w: MxTensor) -> int:
    return w.outputs * w.inputs


def _vectors(params: BlockParams, experts: int) -> int:
    """Bytes of norms, biases and sinks; those of so many experts."""
    vectors = [
        params.norm1,
        params.norm2,
        params.norm1_bias,
        params.norm2_bias,
        params.bq,
        params.bk,
        params.bv,
        params.bo,
        params.sinks,
        params.router_bias,
    ]
    for e in params.experts[:experts]:
        vectors += [e.gate_bias, e.up_bias, e.down_bias]
    return sum(v.nbytes for v in vectors if v is not None)


def block_need(spec: BlockSpec, params: BlockParams, first: int, tokens: int, steps: bool) -> Need:
    """Rows in, rows out, of one layer: `tokens` tokens at positions first.. as one prefill, or one by one.

    steps: what a layer needs is read for each token, and the keys and values in sight come from DRAM.
    """
    sights = [min(first + i + 1, spec.window or first + i + 1) for i in range(tokens)]
    row = 4 * spec.hidden * tokens
    rows = Need(read=row, written=row)
    if steps:
        return sum((layer_need(spec, params, [n], n - 1) for n in sights), rows)
    return layer_need(spec, params, sights, min(first, (spec.window or first + 1) - 1)) + rows


def layer_need(spec: BlockSpec, params: BlockParams, sights: Sequence[int], past: int) -> Need:
    """One layer for len(sights) tokens together: row i sees sights[i] keys, `past` keys come from DRAM.

    Each expert is read once, of those that all rows choose if no two choose the same.
    """
    tokens, per_token = len(sights), 2 * (spec.kv_heads * spec.head_dim + spec.kv_scales)
    chosen = spec.top_k if spec.experts else 1
    expert = _expert(params.experts[0])
    macs = tokens * (sum(map(_macs, _tensors(params))) + chosen * sum(map(_macs, expert)))
    macs += sum(2 * spec.heads * spec.head_dim * n for n in sights)
    used = min(max(1, spec.experts), chosen * tokens)
    read = sum(w.needed_bytes for w in _tensors(params)) + used * sum(w.needed_bytes for w in expert)
    written = tokens * per_token if spec.causal else 0
    return Need(macs, read + _vectors(params, used) + past * per_token, written)


def _rows_need(spec: ModelSpec, tokens: int) -> Need:
    """The RoPE row of each token."""
    return Need(read=tokens * (0 if spec.block.rope == "none" else 4 * spec.block.head_dim))


def decode_need(spec: ModelSpec, params: ModelParams, positions: Sequence[int], logits: bool = False) -> Need:
    """One token for each user, at its position: embedding row to the chosen token, weights read once.

    Tokens of the past come from the KV cache. With several users and experts: as if no two users chose the
    same expert. logits: also written to DRAM.
    """
    users, hidden = len(positions), spec.block.hidden
    total = _rows_need(spec, users)
    for i, layer in enumerate(params.layers):
        sights = [min(p + 1, spec.windows[i] or p + 1) for p in positions]
        total += layer_need(spec.block, layer, sights, sum(sights) - users)
    norms = [v for v in (params.final_norm, params.final_norm_bias) if v is not None]
    read = sum(4 * len(v) for v in norms) + users * 2 * hidden * (1 if params.positions is None else 2)
    if params.head is None:
        raise ValueError(f"model {spec.name} is an encoder: allowed is prefill_need")
    head = Need(users * _macs(params.head), params.head.needed_bytes, users * (4 * spec.vocab * logits + 4))
    return total + head + Need(read=read)


def _keys_values_need(spec: BlockSpec, params: BlockParams, tokens: int) -> Need:
    """Keys and values of a layer and nothing else of it."""
    tensors = [params.wk, params.wv]
    vectors = [v for v in (params.norm1, params.norm1_bias, params.bk, params.bv) if v is not None]
    return Need(
        tokens * sum(map(_macs, tensors)),
        sum(w.needed_bytes for w in tensors) + sum(v.nbytes for v in vectors),
        tokens * 2 * (spec.kv_heads * spec.head_dim + spec.kv_scales),
    )


def prefill_need(spec: ModelSpec, params: ModelParams, first: int, tokens: int) -> Need:
    """`tokens` tokens at positions first.. as one chunk: embeddings in, keys and values of all layers out.

    Nothing else of a decoder's last layer is needed. An encoder (first = 0): all rows see all, and its output
    is written.
    """
    total = _rows_need(spec, tokens) + Need(read=4 * tokens * spec.block.hidden)
    if not spec.decoder:
        for layer in params.layers:
            total += layer_need(spec.block, layer, [tokens] * tokens, 0)
        norm = sum(v.nbytes for v in (params.embed_norm, params.embed_norm_bias) if v is not None)
        return total + Need(read=norm, written=4 * tokens * spec.block.hidden)
    for layer, window in zip(params.layers[:-1], spec.windows):
        sights = [min(first + t + 1, window or first + t + 1) for t in range(tokens)]
        past = min(first, window - 1) if window else first
        total += layer_need(spec.block, layer, sights, past)
    return total + _keys_values_need(spec.block, params.layers[-1], tokens)
