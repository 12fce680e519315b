"""What Python's transformers computes with a checkpoint: one JSON file to hold another implementation against.

In: a folder with config.json and safetensors, optionally a PEFT adapter. Out: the loss, the logits at the last
position, the norm of every parameter's gradient and a greedy continuation, all in float32 on the CPU with eager
attention, whatever type the weights are stored in. Knows nothing of Skein.
"""

import argparse
import json
import math
import pathlib
import sys
import warnings

try:
    import torch
    import transformers
except ImportError as missing:
    sys.exit(f"this Python has no {missing.name}: pip install torch transformers safetensors (and peft for --adapter)")

EXAMPLE = """\
example:
    python reference.py ~/models/SmolLM2-135M --out smollm.json --ids-from-seed 1 --batch 2 --sequence 64

The file holds:
    transformers   the version that computed all this
    ids            the tokens, batch x sequence
    loss           mean cross-entropy of every token but the first of each row, given those before it
    last_logits    batch x vocabulary, after the last token of each row
    grad_norms     L2 norm of the loss' gradient, by parameter; a matrix that serves twice (tied embeddings) has one
                   name and the sum of both gradients. With --adapter: the adapter's parameters, named as in its file
    greedy         what follows the first 8 ids of row 0 when the likeliest token is taken each time; no token ends it
    greedy_margin  the least lead of a token taken over the second; when it is tiny, rounding may decide otherwise
"""
PROMPT = 8  # ids of row 0 that `greedy` continues


def made_ids(seed, batch, sequence, vocabulary):
    """The generator of C's example rand(): anyone can repeat it in integers."""
    state, ids = seed, []
    for _ in range(batch * sequence):
        state = (state * 1103515245 + 12345) % 2**31
        ids.append((state >> 16) % vocabulary)
    return [ids[row * sequence : (row + 1) * sequence] for row in range(batch)]


def load(folder, adapter=None):
    """The model in float32, with gradients on what a training step would change."""
    folder = pathlib.Path(folder)
    if not (folder / "config.json").is_file():
        sys.exit(f"{folder} holds no config.json: give the folder of a Hugging Face checkpoint")
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as reason:
        sys.exit(f"transformers {transformers.__version__} cannot load {folder}: {reason}")
    if report["missing_keys"]:
        # transformers fills these with random numbers and goes on.
        sys.exit(f"{folder} lacks weights that its config.json asks for: {', '.join(sorted(report['missing_keys']))}")
    if adapter:
        model = adapted(model, pathlib.Path(adapter))
    return model.eval()


def adapted(model, folder):
    try:
        import peft
    except ImportError:
        sys.exit("this Python has no peft, which --adapter needs: pip install peft")
    if not (folder / "adapter_config.json").is_file():
        sys.exit(f"{folder} holds no adapter_config.json: give the folder that peft's save_pretrained wrote")
    warnings.filterwarnings("error", message="Found missing adapter keys")
    try:
        return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except (UserWarning, ValueError, KeyError, RuntimeError) as reason:
        sys.exit(f"peft {peft.__version__} cannot put {folder} on this model: {reason}")


def continued(model, prompt, count):
    # A configuration of our own: a checkpoint's may sample, punish repetition or stop at its end token.
    model.generation_config = transformers.GenerationConfig(do_sample=False, max_new_tokens=count)
    options = dict(return_dict_in_generate=True, output_logits=True, attention_mask=torch.ones_like(prompt))
    made = model.generate(input_ids=prompt, **options)
    best = torch.stack(made.logits)[:, 0].topk(2).values
    return made.sequences[0, prompt.shape[1] :].tolist(), (best[:, 0] - best[:, 1]).min().item()


def reference(model, ids, greedy):
    """The content of the file. The last cross-entropy is taken in float64, everything before it in float32."""
    tokens = torch.tensor(ids)
    logits = model(input_ids=tokens, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), tokens[:, 1:].flatten())
    loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = {
        "transformers": transformers.__version__,
        "ids": ids,
        "loss": loss.item(),
        "last_logits": logits[:, -1].tolist(),
        # "default" is peft's name for the adapter in memory; files do not have it.
        "grad_norms": {name.replace(".default.", "."): w.grad.double().norm().item() for name, w in trained.items()},
    }
    if greedy:
        found["greedy"], found["greedy_margin"] = continued(model, tokens[:1, :PROMPT], greedy)
    return found


def written(value):
    """JSON with nine digits, enough to name any float32, and one line a row."""
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {written(item)}" for key, item in value.items()) + "\n}"
    if isinstance(value, list):
        return "[" + (",\n" if isinstance(value[0], list) else ",").join(map(written, value)) + "]"
    if isinstance(value, float):
        if not math.isfinite(value):
            sys.exit("the model computes numbers that are not finite: its weights are damaged")
        return f"{value:.9g}"
    return json.dumps(value)


def given_ids(path):
    try:
        ids = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as reason:
        sys.exit(f"cannot read ids from {path}: {reason}")
    ids = ids.get("ids") if isinstance(ids, dict) else ids
    rows = isinstance(ids, list) and ids and all(isinstance(row, list) and len(row) == len(ids[0]) for row in ids)
    if not rows or not all(type(token) is int for row in ids for token in row):
        sys.exit(f"{path} must hold rows of one length, [[1, 2, 3], [4, 5, 6]], or an object with such `ids`")
    return ids


def checked(ids, model):
    vocabulary = model.get_input_embeddings().num_embeddings
    wrong = [token for row in ids for token in row if not 0 <= token < vocabulary]
    if wrong:
        sys.exit(f"id {wrong[0]} lies outside the model's vocabulary of {vocabulary}")
    if len(ids[0]) < 2:
        sys.exit("a sequence needs two tokens at least: the loss is about the next one")
    return ids


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=raw)
    parser.add_argument("model", metavar="MODEL_DIR", help="folder with config.json and *.safetensors")
    parser.add_argument("--out", required=True, metavar="FILE.json", help="where the numbers go")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--ids-from-seed", type=int, default=1, metavar="N", help="make ids up from N (default 1)")
    source.add_argument("--ids", metavar="FILE", help="JSON rows of token ids, or a file that this tool wrote")
    parser.add_argument("--batch", type=int, default=2, metavar="B", help="rows of made-up ids (default 2)")
    parser.add_argument("--sequence", type=int, default=24, metavar="T", help="tokens a row (default 24)")
    parser.add_argument("--greedy", type=int, default=64, metavar="N", help="tokens to add; 0 omits it (default 64)")
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT LoRA adapter to put on the model")
    asked = parser.parse_args()
    if min(asked.batch, asked.sequence) < 1 or min(asked.ids_from_seed, asked.greedy) < 0:
        parser.error("--batch and --sequence must be positive, --ids-from-seed and --greedy not negative")

    torch.use_deterministic_algorithms(True)
    ids = given_ids(asked.ids) if asked.ids else None
    model = load(asked.model, asked.adapter)
    if ids is None:
        vocabulary = model.get_input_embeddings().num_embeddings
        ids = made_ids(asked.ids_from_seed, asked.batch, asked.sequence, vocabulary)
    ids = checked(ids, model)
    try:
        text = written(reference(model, ids, asked.greedy))
    except (ValueError, RuntimeError) as reason:
        sys.exit(f"transformers {transformers.__version__} cannot run {asked.model}: {reason}")
    try:
        pathlib.Path(asked.out).write_text(text + "\n")
    except OSError as reason:
        sys.exit(f"cannot write {asked.out}: {reason}")


if __name__ == "__main__":
    main()
