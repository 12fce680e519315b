"""The models of `skein bench generate` and `skein bench finetune` in transformers and PEFT: same sizes, f32, the same threads.

    python pipeline/benches/generate.py generate HIDDEN LAYERS HEADS FFN VOCAB THREADS PROMPT TOKENS CLIENTS
    python pipeline/benches/generate.py finetune HIDDEN LAYERS HEADS FFN VOCAB THREADS SEQUENCE BATCH RANK TARGETS STEPS

The last line is a document, for `--torch PYTHON`.
"""

import json
import sys
import time

try:
    import torch
    import transformers
except ImportError:
    print("skipped: this Python has no torch or no transformers")
    sys.exit(0)

transformers.logging.set_verbosity_error()


def model(hidden, layers, heads, ffn, vocab, context):
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=ffn,
        vocab_size=vocab,
        max_position_embeddings=context,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def generate(hidden, layers, heads, ffn, vocab, threads, prompt, tokens, clients):
    torch.set_num_threads(threads)
    lm = model(hidden, layers, heads, ffn, vocab, prompt + tokens + 1).eval()

    def answer(readers, length, said):
        ids = torch.arange(readers * length).reshape(readers, length) * 977 % vocab
        began = time.perf_counter()
        cache, first = None, 0.0
        for step in range(said + 1):
            out = lm(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            ids = out.logits[:, -1:].argmax(-1)
            if step == 0:
                first = time.perf_counter() - began
        rest = time.perf_counter() - began - first
        return first, readers * said / rest

    with torch.inference_mode():
        answer(1, prompt, 2)
        first, alone = answer(1, prompt, tokens)
        _, together = answer(clients, min(prompt, 32), tokens)
    return {
        "params": sum(p.numel() for p in lm.parameters()),
        "tokens_per_s": alone,
        "prefill_tokens_per_s": prompt / first,
        "clients_tokens_per_s": together,
    }


def finetune(hidden, layers, heads, ffn, vocab, threads, sequence, batch, rank, targets, steps):
    import peft

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    base = model(hidden, layers, heads, ffn, vocab, sequence)
    names = [name + "_proj" for name in targets.split(",")]
    lm = peft.get_peft_model(base, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names))
    trained = [p for p in lm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    times = []
    for step in range(steps):
        ids = torch.randint(vocab, (batch, sequence))
        began = time.perf_counter()
        lm(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    half = sorted(times[steps // 2 :])
    return {
        "params": sum(p.numel() for p in lm.parameters()),
        "tokens_per_s": batch * sequence / half[len(half) // 2],
    }


what, *args = sys.argv[1:]
sizes = [int(arg) if arg.isdigit() else arg for arg in args]
document = {"generate": generate, "finetune": finetune}[what](*sizes)
print(json.dumps(document | {"torch": f"{torch.__version__}, transformers {transformers.__version__}"}))
