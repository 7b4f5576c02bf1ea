"""The two networks as PyTorch modules for training: parameters have the names that `transformers` gives them.

`Net(config)` builds a `LlamaForCausalLM` or a `GptOssForCausalLM` from the fields of its config.json, without
caches or options that training does not use. Experts are trained for MXFP4: the forward pass sees weights
rounded by `mxfp4` (golden.formats.encode and decode), the gradient goes straight through to float32 weights.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

BLOCK = 32


def mxfp4(w: torch.Tensor) -> torch.Tensor:
    """w rounded to MXFP4 in blocks of 32 along the last axis, values in float32.

    Shared exponent floor(log2(max|x|)) - 2, elements to the nearest E2M1 (ties to even), saturated at 6.
    """
    blocks = w.unflatten(-1, (-1, BLOCK))
    exponent = torch.frexp(blocks.abs().amax(-1, keepdim=True))[1] - 3  # frexp's mantissa lies in [0.5, 1)
    x = torch.ldexp(blocks, -exponent)
    magnitude = x.abs()
    quantum = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    x = (torch.round(x / quantum) * quantum).clamp(-6, 6)
    return torch.ldexp(x, exponent).flatten(-2)


def straight_through(w: torch.Tensor) -> torch.Tensor:
    """mxfp4(w) in the forward pass, the identity in the backward pass."""
    with torch.no_grad():
        error = mxfp4(w) - w
    return w + error


def rope_frequencies(config: dict) -> tuple[torch.Tensor, float]:
    """(head_dim / 2 radians per position, factor of cos and sin); YaRN where config has rope_scaling."""
    dim, base, scaling = config["head_dim"], config["rope_theta"], config.get("rope_scaling")
    frequency = base ** -(torch.arange(0, dim, 2) / dim)
    if scaling is None:
        return frequency, 1.0
    length, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = (dim * math.log(length / (beta * 2 * math.pi)) / (2 * math.log(base))
                 for beta in (scaling["beta_fast"], scaling["beta_slow"]))
    low, high = max(low, 0), min(high, dim - 1)
    interpolated = ((torch.arange(dim // 2) - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - interpolated) + frequency / factor * interpolated, 0.1 * math.log(factor) + 1


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (..., length, head_dim) with half-split pairs; cos, sin (length, head_dim / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Grouped-query attention, causal; sinks where the model has them, a window where one is given."""

    def __init__(self, config: dict, window: int | None) -> None:
        super().__init__()
        hidden, self.dim = config["hidden_size"], config["head_dim"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        bias, self.window = config["attention_bias"], window
        self.q_proj = nn.Linear(hidden, self.heads * self.dim, bias=bias)
        self.k_proj = nn.Linear(hidden, self.kv_heads * self.dim, bias=bias)
        self.v_proj = nn.Linear(hidden, self.kv_heads * self.dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.dim, hidden, bias=bias)
        self.sinks = nn.Parameter(torch.zeros(self.heads)) if config["model_type"] == "gpt_oss" else None

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x (batch, length, hidden) -> the same shape."""
        length, group = x.shape[1], self.heads // self.kv_heads
        q, k, v = (p(x).unflatten(-1, (-1, self.dim)).transpose(1, 2)
                   for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        if self.sinks is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            visible = torch.ones(length, length, dtype=torch.bool).tril()
            if self.window is not None:
                visible = visible.triu(1 - self.window)
            mask = torch.where(visible, 0.0, -torch.inf).expand(self.heads, -1, -1)
            # the sink is the score of one more key, whose value is 0
            mask = torch.cat((mask, self.sinks[:, None, None].expand(-1, length, 1)), dim=-1)
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            out = (q * self.dim**-0.5 @ k.transpose(2, 3) + mask).softmax(-1) @ v
        return self.o_proj(out.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """The MLP of a Llama."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        hidden, ffn = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, ffn, bias=False)
        self.up_proj = nn.Linear(hidden, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """Weights of all experts, input axis last as the published blocks have it; gate and up rows alternate."""

    def __init__(self, experts: int, hidden: int, ffn: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * ffn, hidden))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(experts, 2 * ffn))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, ffn))
        self.down_proj_bias = nn.Parameter(torch.zeros(experts, hidden))


class MixtureOfExperts(nn.Module):
    """The MLP of a gpt-oss: router, softmax over the chosen experts, clamped SwiGLU."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        hidden, count = config["hidden_size"], config["num_local_experts"]
        self.top_k, self.alpha, self.limit = config["num_experts_per_tok"], 1.702, config["swiglu_limit"]
        self.router = nn.Linear(hidden, count)
        self.experts = Experts(count, hidden, config["intermediate_size"])
        self.balance = torch.zeros(())  # load balancing loss of the last forward pass, 1 when even

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape, e = x.shape, self.experts
        x = x.flatten(0, -2)
        logits = self.router(x)
        value, chosen = logits.topk(self.top_k, dim=-1)
        probability = value.softmax(-1)
        # rows sorted into all gates, then all ups
        gate_up = (p.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2).unbind()
                   for p in (straight_through(e.gate_up_proj), e.gate_up_proj_bias))
        weights = zip(*gate_up, straight_through(e.down_proj).unbind(), e.down_proj_bias.unbind())
        out, load = torch.zeros_like(x), []
        for index, (gate_up_proj, gate_up_bias, down_proj, down_bias) in enumerate(weights):
            token, rank = (chosen == index).nonzero(as_tuple=True)
            gate, up = F.linear(x.index_select(0, token), gate_up_proj, gate_up_bias).chunk(2, dim=-1)
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
            y = F.linear((up + 1) * gate * torch.sigmoid(self.alpha * gate), down_proj, down_bias)
            out = out.index_add(0, token, y * probability[token, rank, None])
            load.append(len(token) / (len(x) * self.top_k))
        self.balance = len(load) * (torch.tensor(load) * logits.softmax(-1).mean(0)).sum()
        return out.reshape(shape)


class Layer(nn.Module):
    def __init__(self, config: dict, index: int) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        sliding = config.get("layer_types", {index: ""})[index] == "sliding_attention"
        self.self_attn = Attention(config, config["sliding_window"] if sliding else None)
        self.mlp = MixtureOfExperts(config) if config["model_type"] == "gpt_oss" else SwiGLU(config)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(hidden, eps), RMSNorm(hidden, eps)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embedding, layers, last norm: what the names call `model`."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])


class Net(nn.Module):
    """Language model of a config.json: tokens (batch, length) -> logits (batch, length, vocab)."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.config, self.model = config, Body(config)
        self.lm_head = None
        if not config["tie_word_embeddings"]:
            self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        frequency, scale = rope_frequencies(config)
        angle = torch.arange(config["max_position_embeddings"])[:, None] * frequency
        self.cos, self.sin = angle.cos() * scale, angle.sin() * scale
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Attention starts out copying what it sees to the output: names are then learned much sooner."""
        depth = (2 * len(self.model.layers)) ** -0.5
        for name, p in self.named_parameters():
            if name.endswith(("bias", "sinks")):
                p.zero_()
            elif p.ndim > 1:  # fan-in is last; projections back to the residual stream start smaller
                std = 0.04 if "embed" in name else p.shape[-1] ** -0.5
                p.normal_(std=std * (depth if "down_proj" in name else 1))
        for a in (layer.self_attn for layer in self.model.layers):
            v = a.v_proj.weight.unflatten(0, (a.kv_heads, -1)).repeat_interleave(a.heads // a.kv_heads, dim=0)
            a.o_proj.weight.copy_(0.5 * v.flatten(0, 1).T)
        if self.lm_head is not None:
            self.lm_head.weight.copy_(self.model.embed_tokens.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(self.model.norm(x), head.weight)

    def balance(self) -> torch.Tensor:
        """Mean load balancing loss of the mixtures of experts, 0 for a dense model."""
        losses = [layer.mlp.balance for layer in self.model.layers if isinstance(layer.mlp, MixtureOfExperts)]
        return torch.stack(losses).mean() if losses else torch.zeros(())
