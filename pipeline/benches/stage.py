"""The model of `skein bench stage` in PyTorch: same sizes, AdamW, f32, subnormals flushed.

    python pipeline/benches/stage.py hidden layers heads ffn vocab sequence batch threads steps FILE

Prints medians of the last half of the steps (50 at most), as the bench does. Without a file the tokens are made up.
With --json as the last argument the last line is a document, for `skein bench stage --torch PYTHON`.
"""

import json
import sys
import time

try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
except ImportError:
    print("skipped: this Python has no torch")
    sys.exit(0)


class Norm(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)


def turned(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Layer(nn.Module):
    def __init__(self, hidden, heads, ffn):
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = Norm(hidden), Norm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(turned(q, cos, sin), turned(k, cos, sin), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        gate, up = self.gate_up(self.n2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, hidden, layers, heads, ffn, vocab, sequence):
        super().__init__()
        self.embed = nn.Embedding(vocab, hidden)
        self.layers = nn.ModuleList(Layer(hidden, heads, ffn) for _ in range(layers))
        self.norm, self.head = Norm(hidden), nn.Linear(hidden, vocab, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        half = hidden // heads // 2
        angle = torch.outer(torch.arange(sequence).float(), 10000.0 ** (-torch.arange(half).float() / half))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return self.head(self.norm(x))


def main():
    document = sys.argv[-1] == "--json"
    args = sys.argv[1 : len(sys.argv) - document]
    defaults = [256, 8, 8, 688, 256, 128, 8, 2, 30]
    given = [int(a) for a in args[:9]]
    hidden, layers, heads, ffn, vocab, sequence, batch, threads, steps = given + defaults[len(given) :]
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(1)
    if len(args) > 9:
        text = torch.frombuffer(bytearray(open(args[9], "rb").read()), dtype=torch.uint8).long()
    else:
        text = torch.tensor([((i * 2654435761) % 2**32 >> 8) % vocab for i in range(1 << 20)])
    model = Model(hidden, layers, heads, ffn, vocab, sequence)
    params = sum(p.numel() for p in model.parameters())
    print(f"{params} parameters, {threads} threads, torch {torch.__version__}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    at, times = 0, []
    for step in range(steps):
        starts = []
        for _ in range(batch):
            at = (at + 7919 * sequence) % (len(text) - sequence - 1)
            starts.append(at)
        x = torch.stack([text[s : s + sequence] for s in starts])
        y = torch.stack([text[s + 1 : s + sequence + 1] for s in starts])
        start = time.perf_counter()
        loss = F.cross_entropy(model(x).view(-1, vocab), y.view(-1))
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end = time.perf_counter()
        times.append((end - start, forward - start, backward - forward, end - backward))
    last = times[max(steps // 2, steps - 50) :]
    whole, forward, backward, step = (sorted(t[k] for t in last)[len(last) // 2] for k in range(4))
    print(
        f"loss {loss.item():.3f}, forward {forward * 1e3:.1f} ms, backward {backward * 1e3:.1f} ms, step {step * 1e3:.1f} ms,"
        f" {sequence * batch / whole:.0f} tokens/s"
    )
    if document:
        print(json.dumps({"torch": torch.__version__, "params": params, "tokens_per_s": sequence * batch / whole}))


main()
