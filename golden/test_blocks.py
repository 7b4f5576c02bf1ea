"""golden.blocks: norms and whole decoder blocks; bits against the page row by row, values against float64."""
import numpy as np
import pytest

from golden import arith, formats
from golden.arith import F32, fadd, fmul
from golden.blocks import Block, attention, layer_norm, rms_norm
from golden.spec import LOG2E, BlockParams, BlockSpec, random_params
from golden.test_arith import bits
from golden.test_attention import float_attention, float_rope, page_attention
from golden.test_mlp import (ULP, float_gates, float_mlp, normal, page_linear, page_mlp, page_mm,
                             page_moe, page_q8, page_sum8, rms, values)

SPECS = [
    BlockSpec(name="llama", hidden=64, heads=4, kv_heads=2, head_dim=32, ffn=172, rope="interleaved",
              eps=1e-3, max_tokens=96),
    BlockSpec(name="small heads", hidden=40, heads=5, kv_heads=1, head_dim=8, ffn=72, ffn_fmt=formats.FP6,
              max_tokens=96),
    BlockSpec(name="multi head", hidden=48, heads=3, kv_heads=3, head_dim=16, ffn=48, bias=True,
              attn_fmt=formats.FP6, max_tokens=96),
    BlockSpec(name="gptoss", hidden=288, heads=8, kv_heads=2, head_dim=64, ffn=96, window=32, sinks=True,
              experts=6, top_k=2, act="clamped", bias=True, ffn_fmt=formats.FP4, rope_theta=150000.0,
              max_tokens=96),
    BlockSpec(name="mixture", hidden=64, heads=4, kv_heads=2, head_dim=32, ffn=40, experts=4, top_k=4,
              max_tokens=96),
    BlockSpec(name="gpt2", hidden=80, heads=5, kv_heads=5, head_dim=16, ffn=320, norm="layer", rope="none",
              act="gelu_tanh", bias=True, max_tokens=96),
    BlockSpec(name="bert", hidden=64, heads=2, kv_heads=2, head_dim=32, ffn=200, norm="layer", eps=1e-12,
              post_norm=True, causal=False, rope="none", act="gelu_erf", bias=True, max_tokens=96),
    BlockSpec(name="scaled", hidden=64, heads=4, kv_heads=1, head_dim=16, ffn=64, norm="layer", window=20,
              rope_inv_freq=(1.0, 0.7, 0.5, 0.2, 0.1, 0.03, 0.01, 0.0), rope_factor=1.2, attn_scale=0.11,
              act="gelu_erf", sinks=True, max_tokens=96),
    BlockSpec(name="post norm", hidden=96, heads=3, kv_heads=3, head_dim=32, ffn=40, post_norm=True,
              experts=4, top_k=2, act="clamped", max_tokens=96),
]
NAMES = [s.name for s in SPECS]
CAUSAL = [s for s in SPECS if s.causal]


# ---------------------------------------------------------------- norms

@pytest.mark.parametrize("n", [1, 40, 288])
def test_norms(n):
    g = np.random.default_rng(n)
    x, gamma, beta = normal(g, 50, n) * F32(5), normal(g, n), normal(g, n)
    x64 = x.astype(float)
    y = rms_norm(x, gamma, 1e-5)
    want = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + 1e-5) * gamma
    # rsqrt 7 ulp; at most n / 8 + 3 additions per sum, whose roundings the root halves; six more operations
    assert (np.abs(y - want) <= (10 + n / 16) * ULP * np.abs(want)).all()
    row = F32(0.5) * x[7]
    r = arith.rsqrt(fadd(fmul(page_sum8(fmul(row, row)), F32(1 / n)), F32(1e-5)))
    assert np.array_equal(bits(fmul(fmul(row, r), gamma)), bits(rms_norm(row[None], gamma, 1e-5)[0]))

    y = layer_norm(x, gamma, beta, 1e-5)
    c = x64 - x64.mean(axis=1, keepdims=True)
    want = c / np.sqrt((c**2).mean(axis=1, keepdims=True) + 1e-5) * gamma
    # |x| < 25 bounds the error of the mean, which the variance (25 but for n = 1: eps) scales
    mean_error = 0 if n == 1 else 25 * (4 + n / 8) * ULP / 2
    assert (np.abs(y - want - beta) <= (10 + n / 16) * ULP * (np.abs(want) + np.abs(beta)) + mean_error
            * np.abs(gamma)).all()
    for i in range(0, 50, 5):
        centred = arith.fsub(x[i], fmul(page_sum8(x[i]), F32(1 / n)))
        r = arith.rsqrt(fadd(fmul(page_sum8(fmul(centred, centred)), F32(1 / n)), F32(1e-5)))
        assert np.array_equal(bits(fadd(fmul(fmul(centred, r), gamma), beta)), bits(y[i]))


def test_norm_literals():
    one, x = np.ones(4, F32), np.array([[2, -2, 2, 2]], F32)
    assert np.allclose(rms_norm(x, one, 0), x / 2, atol=4 * ULP)
    assert np.allclose(rms_norm(x, one, 12), x / 4, atol=4 * ULP)
    assert np.allclose(layer_norm(x[:, :2], one[:2], 2 * one[:2], 0), [[3, 1]], atol=4 * ULP)
    assert (rms_norm(np.zeros((1, 4), F32), one) == 0).all()


# ---------------------------------------------------------------- whole blocks: references

def page_head(spec: BlockSpec, y: np.ndarray, position: int) -> np.ndarray:
    """One head's features turned to `position`, feature by feature."""
    cos, sin = (table[0] for table in spec.rope_tables(np.array([position])))  # sin with its sign
    half = spec.head_dim // 2
    out = []
    for i in range(spec.head_dim):
        partner = (i + half if i < half else i - half) if spec.rope == "half" else i ^ 1
        out.append(fadd(fmul(y[i], cos[i]), fmul(y[partner], sin[i])))
    return np.array(out)


def page_norm(spec: BlockSpec, row: np.ndarray, gamma: np.ndarray, beta: np.ndarray | None) -> np.ndarray:
    if spec.norm == "layer":
        row = arith.fsub(row, fmul(page_sum8(row), F32(1 / len(row))))
    r = arith.rsqrt(fadd(fmul(page_sum8(fmul(row, row)), F32(1 / len(row))), F32(spec.eps)))
    y = fmul(fmul(row, r), gamma)
    return fadd(y, beta) if spec.norm == "layer" else y


def page_block(spec: BlockSpec, p: BlockParams, x: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Output and queries of row i of a sequence that starts at position 0."""
    d, group = spec.head_dim, spec.heads // spec.kv_heads
    norm1, norm2 = (p.norm1, p.norm1_bias), (p.norm2, p.norm2_bias)
    scale = F32(float(LOG2E) * (d**-0.5 if spec.attn_scale is None else spec.attn_scale))

    def turned(heads: np.ndarray, t: int) -> list:
        return list(heads) if spec.rope == "none" else [page_head(spec, y, t) for y in heads]

    keys, queries, values_ = [], [], []
    for t, row in enumerate(x):
        blocks = page_q8(row if spec.post_norm else page_norm(spec, row, *norm1))
        q, k, v = (page_linear(blocks, *w).reshape(-1, d)
                   for w in ((p.wq, p.bq), (p.wk, p.bk), (p.wv, p.bv)))
        keys.append(turned(k, t))
        queries.append([fmul(y, scale) for y in turned(q, t)])
        values_.append(v)
    k, v, blocks = np.array(keys), np.array(values_), {}
    allowed = [not spec.causal or i - (spec.window or len(x)) < t <= i for t in range(len(x))]
    for h in range(spec.heads):
        sink = fmul(p.sinks[h], LOG2E) if spec.sinks else None
        o = page_attention(queries[i][h], k[:, h // group], v[:, h // group], allowed, sink)
        for b, block in enumerate(page_q8(o, min(32, d))):
            blocks[b, h] = block
    y = fadd(page_linear([blocks[at] for at in sorted(blocks)], p.wo, p.bo), x[i])
    if spec.post_norm:
        y = page_norm(spec, y, *norm1)
    n2 = page_q8(y if spec.post_norm else page_norm(spec, y, *norm2))
    if spec.experts:
        logits = fadd(page_mm(n2, p.router), p.router_bias)
        y = page_moe(y, n2, p.experts, logits, spec.top_k, spec.act)
    else:
        y = fadd(page_mlp(n2, p.experts[0], spec.act), y)
    return page_norm(spec, y, *norm2) if spec.post_norm else y, np.array(queries[i])


def float_norm(spec: BlockSpec, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray | None) -> np.ndarray:
    if spec.norm == "rms":
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + spec.eps) * gamma
    c = x - x.mean(axis=1, keepdims=True)
    return c / np.sqrt(x.var(axis=1, keepdims=True) + spec.eps) * gamma + beta


def float_block(spec: BlockSpec, p: BlockParams, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float64 block of the quantised weights; also each row's distance of the k-th logit to the next."""
    d, tokens = spec.head_dim, len(x)
    norm1, norm2 = (p.norm1, p.norm1_bias), (p.norm2, p.norm2_bias)
    x = x.astype(float)
    n1 = x if spec.post_norm else float_norm(spec, x, *norm1)
    q, k, v = ((n1 @ values(w).T + (0 if b is None else b)).reshape(tokens, -1, d)
               for w, b in ((p.wq, p.bq), (p.wk, p.bk), (p.wv, p.bv)))
    at = np.arange(tokens)
    if spec.rope != "none":
        q, k = (float_rope(y, at, spec.rope_theta, spec.rope, spec.rope_inv_freq, spec.rope_factor)
                for y in (q, k))
    o, _ = float_attention(q, k, v, at, spec.window, p.sinks if spec.sinks else None, spec.causal,
                           spec.attn_scale)
    blocks = formats.decode(p.wo.ints, p.wo.scales, p.wo.fmt, np.float64)  # (hidden, slices * heads, 32)
    for h in range(spec.heads):
        for f in range(d):
            x = x + np.outer(o[:, h, f], blocks[:, f // 32 * spec.heads + h, f % 32])
    x = x if p.bo is None else x + p.bo
    x = float_norm(spec, x, *norm1) if spec.post_norm else x
    n2 = x if spec.post_norm else float_norm(spec, x, *norm2)
    margin = np.full(tokens, np.inf)
    if spec.experts:
        logits = n2 @ values(p.router).T + p.router_bias
        gates = float_gates(logits, spec.top_k)
        y = x + sum(gates[:, i, None] * float_mlp(n2, e, spec.act) for i, e in enumerate(p.experts))
        if spec.top_k < spec.experts:
            ranked = np.sort(logits, axis=1)[:, ::-1]
            margin = ranked[:, spec.top_k - 1] - ranked[:, spec.top_k]
    else:
        y = x + float_mlp(n2, p.experts[0], spec.act)
    return float_norm(spec, y, *norm2) if spec.post_norm else y, margin


def inputs(spec: BlockSpec, tokens: int) -> np.ndarray:
    return normal(np.random.default_rng(tokens), tokens, spec.hidden)


# ---------------------------------------------------------------- whole blocks: tests

@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_block_bits(spec, monkeypatch):
    p, x = random_params(spec, 1), inputs(spec, 35)
    seen = []
    monkeypatch.setattr("golden.blocks.attention", lambda q, *rest: seen.append(q) or attention(q, *rest))
    y = Block(spec, p).forward(x, 0)
    want, queries = page_block(spec, p, x, 34)
    assert np.array_equal(bits(queries), bits(seen[0][34]))  # MXINT8 hides most of a last-bit difference
    assert np.array_equal(bits(want), bits(y[34]))


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_block_values(spec):
    p, x = random_params(spec, 2), inputs(spec, 80)
    y = Block(spec, p).forward(x, 0)
    want, margin = float_block(spec, p, x)
    # six products between x and y have MXINT8 operands (0.8 % to 2 % each, test_mlp and test_attention); a
    # tenth of a logit is twelve times its noise: closer than that, routing may differ
    clear = margin > 0.1
    assert clear.mean() > 0.7
    update = rms((want - x)[clear])
    assert rms((y - want)[clear]) < 0.03 * update
    a, b = y - x, want - x
    cosine = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine[clear].min() > 0.998


@pytest.mark.parametrize("spec", CAUSAL, ids=[s.name for s in CAUSAL])
def test_decode_equals_prefill(spec):
    p, x = random_params(spec, 3), inputs(spec, 75)
    whole = Block(spec, p)
    y = whole.forward(x, 0)
    g = np.random.default_rng(4)
    for edges in ([0, *range(30, 76)], [0, *sorted(g.choice(np.arange(1, 75), 4, replace=False)), 75]):
        block = Block(spec, p)
        parts = [block.forward(x[lo:hi], lo) for lo, hi in zip(edges, edges[1:])]
        assert np.array_equal(bits(np.concatenate(parts)), bits(y)), edges
        for name in ("k", "k_scales", "v", "v_scales"):
            assert np.array_equal(getattr(block.cache, name), getattr(whole.cache, name))


def test_state():
    spec, x = SPECS[0], inputs(SPECS[0], 10)
    block = Block(spec, random_params(spec, 5))
    block.forward(x, 0)
    with pytest.raises(ValueError, match="pos0 = 0: allowed is 10"):
        block.forward(x, 0)
    again = block.forward(x[:1], 10)
    block.cache.truncate(10)
    assert np.array_equal(bits(block.forward(x[:1], 10)), bits(again))
    with pytest.raises(ValueError, match="max_tokens = 96"):
        block.forward(inputs(spec, 86), 11)


def test_rows_see_the_past_only():
    """A later token, even NaN, changes nothing before it."""
    spec = SPECS[3]
    p, x = random_params(spec, 6), inputs(spec, 40)
    clean = Block(spec, p).forward(x, 0)
    x[33, 5] = np.nan
    y = Block(spec, p).forward(x, 0)
    assert np.array_equal(bits(y[:33]), bits(clean[:33])) and np.isnan(y[33:]).all()


def test_bidirectional():
    """Every row sees all of the sequence, and nothing of the one before."""
    spec = next(s for s in SPECS if not s.causal)
    p, x = random_params(spec, 7), inputs(spec, 40)
    block = Block(spec, p)
    y = block.forward(x, 0)
    assert np.array_equal(bits(block.forward(x[::-1], 0)), bits(Block(spec, p).forward(x[::-1], 0)))
    assert np.array_equal(bits(block.forward(x, 0)), bits(y)) and block.cache.length == 40
    x[39] += F32(1)
    assert (block.forward(x, 0) != y).any(axis=1).all()
    with pytest.raises(ValueError, match="pos0 = 40: allowed is 0"):
        block.forward(x, 40)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.bias], ids=lambda s: s.name)
def test_each_bias_may_be_missing(spec):
    """Without a bias the values are those of a zero bias."""
    x = inputs(spec, 12)
    names = ["bq", "bk", "bv", "bo", "up_bias", "down_bias"]
    names += ["norm1_bias", "norm2_bias"] * (spec.norm == "layer")
    names += ["gate_bias"] * spec.gated + ["router_bias"] * (spec.experts > 0)
    clean = Block(spec, random_params(spec, 8)).forward(x, 0)
    for name in names:
        found = []
        for zero in (False, True):
            p = random_params(spec, 8)
            for owner in [p] if hasattr(p, name) else p.experts:
                setattr(owner, name, np.zeros_like(getattr(owner, name)) if zero else None)
            found.append(Block(spec, p).forward(x, 0))
        assert np.array_equal(*found), name
        assert not np.array_equal(found[0], clean), name
