"""What Python's transformers makes of folders that Skein writes.

    python pipeline/tests/reference/logits.py             compare with the numbers in this folder
    python pipeline/tests/reference/logits.py --write     write them anew
    python pipeline/tests/reference/logits.py DIR TEXT    continue TEXT greedily with an exported model, as
                                                          `skein generate DIR TEXT --temperature 0` does

Needs torch, transformers and cargo. The exit code is 1 when a logit differs by 1e-4 or more.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).parent
NAMES = ("untied", "tied", "split")


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def logits(folder, tokens):
    return load(folder)(torch.tensor([tokens])).logits[0].tolist()


def references():
    with tempfile.TemporaryDirectory() as out:
        example = ["cargo", "run", "-q", "-p", "skein-pipeline", "--features", "compute", "--example", "reference", out]
        subprocess.run(example, check=True, cwd=HERE.parent.parent.parent)
        out = pathlib.Path(out)
        tokens = [int(word) for word in (out / "tokens").read_text().split()]
        return {name: logits(out / name, tokens) for name in NAMES}


def compare(found):
    worst = 0.0
    for name, rows in found.items():
        kept = json.loads((HERE / f"{name}.json").read_text())
        worst = max(worst, (torch.tensor(kept) - torch.tensor(rows)).abs().max().item())
    print(f"logits of {len(found)} models differ from the kept numbers by at most {worst:.1e}")
    return 0 if worst < 1e-4 else 1


def write(found):
    for name, rows in found.items():
        lines = ("[" + ",".join(f"{value:.5f}" for value in row) + "]" for row in rows)
        (HERE / f"{name}.json").write_text("[" + ",\n".join(lines) + "]\n")
    return 0


@torch.no_grad()
def go_on(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text, return_tensors="pt")
    made = load(folder).generate(**tokens, max_new_tokens=64, do_sample=False)
    print(tokenizer.decode(made[0]))
    return 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            sys.exit(compare(references()))
        case ["--write"]:
            sys.exit(write(references()))
        case [folder, text]:
            sys.exit(go_on(folder, text))
        case _:
            sys.exit(__doc__)
