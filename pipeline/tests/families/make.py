"""Tiny random checkpoints of every family that Skein reads, each with the numbers transformers gets from it.

    python make.py OUT_DIR            make them
    python make.py OUT_DIR --check    compute the numbers again and compare; exit code 1 when one differs

Random does not mean tame: biases and norms are drawn too, and queries and keys are large enough that a wrong window,
scaling, norm or bias changes logits in the first digits.
"""

import json
import pathlib
import sys

import peft
import torch
import transformers

sys.dont_write_bytecode = True  # the folder is committed: no __pycache__ beside the checkpoints
from reference import load, made_ids, reference, written

VOCABULARY = 96
SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=None,
)
# Short wavelengths, so that of the four frequencies of a head one is kept, one blended and two divided by the factor.
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=1000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def fill(model):
    """Draws every parameter: norms around one, biases as large as what they are added to."""
    for name, weight in model.named_parameters():
        with torch.no_grad():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(0, 0.7)
            elif "q_proj" in name or "k_proj" in name:
                weight.normal_(0, 0.3)
            else:
                weight.normal_(0, 0.2)


# The seeds were looked for: with these no greedy token wins by less than 0.005, hundreds of times what rounding moves.
def save(out, seed, config, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fill(model)
    transformers.utils.logging.disable_progress_bar()
    model.to(dtype).save_pretrained(out, **options)
    (out / "generation_config.json").unlink(missing_ok=True)


def respell(out, drop=(), **keys):
    """Rewrites config.json as transformers 4 and the hub spell it: no rope_parameters, torch_dtype for dtype."""
    path = out / "config.json"
    config = json.loads(path.read_text())
    config["torch_dtype"] = config.pop("dtype")
    for key in ("rope_parameters", *drop):
        del config[key]
    path.write_text(json.dumps(config | keys, indent=2, sort_keys=True) + "\n")


def llama2(out):
    save(out, 5, transformers.LlamaConfig(**SHAPE, rms_norm_eps=1e-5), torch.bfloat16)
    respell(out, drop=["head_dim"], rope_theta=5000.0, rope_scaling=None, transformers_version="4.31.0")


def llama3(out):
    shape = SHAPE | dict(max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=[2, 3])
    save(out, 28, transformers.LlamaConfig(**shape, rms_norm_eps=1e-5, rope_parameters=dict(LLAMA3)))


def linear(out):
    """As models stretched before rope_theta was a key: it is absent and means 10,000."""
    save(out, 3, transformers.LlamaConfig(**SHAPE, rms_norm_eps=1e-6), torch.float16)
    scaling = {"type": "linear", "factor": 4.0}
    respell(out, drop=["head_dim"], rope_scaling=scaling, transformers_version="4.31.0")


def mistral(out, window=6):
    config = transformers.MistralConfig(**SHAPE, head_dim=12, sliding_window=window, rms_norm_eps=1e-5)
    save(out, 13, config, torch.bfloat16)


def mistral_full(out):
    """The weights of `mistral`: only the window differs."""
    mistral(out, window=None)


def qwen2(out):
    """Layer 0 attends to everything, 1 and 2 slide; as on the hub only max_window_layers says so, not layer_types."""
    windows = dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)
    save(out, 2, transformers.Qwen2Config(**SHAPE, **windows, tie_word_embeddings=True))
    respell(out, drop=["layer_types"], rope_theta=1000000.0, transformers_version="4.40.0")


def qwen3(out):
    rope = {"rope_type": "default", "rope_theta": 1000000.0}
    save(out, 40, transformers.Qwen3Config(**SHAPE, head_dim=16, rope_parameters=rope), max_shard_size="60KB")


def lora(out):
    """An adapter for `llama3`, and no checkpoint of its own."""
    torch.manual_seed(25)
    model = load(out.parent / "llama3")
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, 0, 0.2)
    model.peft_config["default"].base_model_name_or_path = "../llama3"
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)
    # peft keeps the targets in a set, whose order changes from run to run.
    path = out / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": PROJECTIONS}, indent=2) + "\n")


CASES = {
    "llama2": llama2,
    "llama3": llama3,
    "linear": linear,
    "mistral": mistral,
    "mistral-full": mistral_full,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "lora": lora,
}


def references(out):
    """Every file of numbers, with how it is computed."""
    for name in CASES:
        loaded = (out / "llama3", out / "lora") if name == "lora" else (out / name,)
        yield out / name / "reference.json", loaded, made_ids(1, 2, 24, VOCABULARY), 64
    # Positions far beyond the original 64, where a rounded angle would show.
    yield out / "llama3" / "long.json", (out / "llama3",), made_ids(2, 1, 2304, VOCABULARY), 0


def distance(kept, found):
    """The largest difference, relative for numbers above one; infinite where the shape or an integer differs."""
    if isinstance(kept, dict) and isinstance(found, dict) and kept.keys() == found.keys():
        return max(distance(kept[key], found[key]) for key in kept if key != "transformers")
    if isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        return max(map(distance, kept, found))
    if isinstance(kept, int) and isinstance(found, int):
        return 0.0 if kept == found else float("inf")
    if isinstance(kept, float) and isinstance(found, float):
        return abs(kept - found) / max(1.0, abs(kept))
    return float("inf")


def main():
    match sys.argv[1:]:
        case [out]:
            check = False
        case [out, "--check"]:
            check = True
        case _:
            sys.exit(__doc__)
    out = pathlib.Path(out)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for name, make in CASES.items():
        if not check:
            make(out / name)
    worst = 0.0
    for path, loaded, ids, greedy in references(out):
        text = written(reference(load(*loaded), ids, greedy)) + "\n"
        if check:
            off = distance(json.loads(path.read_text()), json.loads(text))
            print(f"{path.relative_to(out)}: differs by {off:.1e} at most")
            worst = max(worst, off)
        else:
            path.write_text(text)
    return 0 if worst < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
