"""Makes the golden vectors of src/text: what transformers, jinja2 and tokenizers of Hugging Face answer, byte for byte.

    python src/text/golden/make.py        # transformers 5.24, tokenizers 0.23; no network

Everything is made here: the templates are our own in the styles that models use, the tokenizers are trained on text from a
formula. `templates.json` also says which part of each conversation is learned, written out by hand-made rules that know no
Jinja.
"""

import datetime
import json
import pathlib
import types

import transformers.utils.chat_template_utils as chat
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
NOW = datetime.datetime(2026, 3, 7, 9, 5, 2)


# --- templates -------------------------------------------------------------------------------------------------------------

TEMPLATES = {
    "chatml": """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}""",
    "llama2": """{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set content = system + message['content'] if loop.index0 == 0 else message['content'] %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + content.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "llama3": """{{- bos_token }}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- set ns = namespace(system=false) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% set ns.system = true %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if loop.first and ns.system %}{{- 'Today Date: ' + date_string + '\\n\\n' }}{% endif %}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] not in ["user", "assistant"] %}{% continue %}{% endif %}
    {%- if message.role == "user" %}
        {{- "[INST]" }}
        {%- if system_message is defined and loop.first %}{{- " " ~ system_message ~ "\\n\\n" }}{%- else %}{{- " " }}{%- endif %}
        {{- message.content + "[/INST]" }}
    {%- else %}
        {{- " " + message.content|trim + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>\\n' }}
{%- endif %}
{% endfor %}""",
    "gemma": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- set role = "model" if message.role == "assistant" else message.role -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {{ message['content'] | map(attribute='text') | join }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
""",
    "qwen": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') if '</think>' in message.content else message.content %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if content.startswith('{') and content.endswith('}') %}{{- content | tojson }}{% else %}{{- content }}{% endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "phi": """{% for message in messages %}{% if message['role'] in ['system', 'user'] %}{{ '<|' ~ message['role'] ~ '|>' + '
' + message['content'] + '<|end|>' + '
' }}{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + '
' + message['content'] + '<|end|>' + '
' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' + '
' }}{% else %}{{ '' }}{% endif %}""",
}

# The same as chatml, and the template itself says what the assistant wrote.
GENERATION = """{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation -%}
        {{- message.content + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

CONVERSATIONS = {
    "one turn": [
        {"role": "user", "content": "What is a heron?"},
        {"role": "assistant", "content": "A bird with long legs."},
    ],
    "two turns with a system": [
        {"role": "system", "content": "Answer in few words."},
        {"role": "user", "content": "Name a colour & a <tag>."},
        {"role": "assistant", "content": "Blue, \"<b>\"."},
        {"role": "user", "content": "Und auf Deutsch?"},
        {"role": "assistant", "content": "Blau – für den Fluß."},
    ],
    "marks, lines and other alphabets": [
        {"role": "user", "content": "Print:\n\n  def f(x):\n    return 'x'\n"},
        {"role": "assistant", "content": "{\"é\": \"😀 日本\", \"n\": 1}"},
        {"role": "user", "content": "e\u0301 👩‍👩‍👧 \\n {{ no }} {% no %}"},
        {"role": "assistant", "content": "  indented\n\nlines"},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "<think>hm</think>\n\nyes"},
    ],
}

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}


def by_hand(style, messages):
    """What each style must look like, as pieces of (text, learned). No Jinja: these are the marks made by hand."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    turns = [(m["role"], m["content"]) for m in messages]
    rest = turns[1:] if system is not None else turns
    bot = lambda role: role == "assistant"
    pieces = []
    if style == "chatml":
        for role, text in turns:
            pieces += [(f"<|im_start|>{role}\n", False), (f"{text}<|im_end|>\n", bot(role))]
    elif style == "qwen":
        if system is None:
            pieces.append(("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", False))
        for role, text in turns:
            if bot(role) and "</think>" in text:
                text = "yes"
            if bot(role) and text.startswith("{"):
                text = '"{\\"é\\": \\"😀 日本\\", \\"n\\": 1}"'
            pieces += [(f"<|im_start|>{role}\n", False), (f"{text}<|im_end|>\n", bot(role))]
    elif style == "llama2":
        first = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system is not None else ""
        for role, text in rest:
            if bot(role):
                pieces.append((f" {text.strip()} </s>", True))
            else:
                pieces.append((f"<s>[INST] {(first + text).strip()} [/INST]", False))
                first = ""
    elif style == "llama3":
        pieces.append(("<s>", False))
        for i, (role, text) in enumerate(turns):
            date = "Today Date: 07 Mar 2026\n\n" if i == 0 and system is not None else ""
            pieces.append((f"<|start_header_id|>{role}<|end_header_id|>\n\n{date}", False))
            pieces.append((f"{text.strip()}<|eot_id|>", bot(role)))
    elif style == "mistral":
        pieces.append(("<s>", False))
        first = f" {system}\n\n" if system is not None else " "
        for role, text in rest:
            pieces.append((f" {text.strip()}</s>", True) if bot(role) else (f"[INST]{first}{text}[/INST]", False))
            first = " "
    elif style == "zephyr":
        for role, text in turns:
            pieces += [(f"<|{role}|>\n", False), (f"{text}</s>\n", bot(role))]
    elif style == "gemma":
        pieces.append(("<s>", False))
        first = f"{system}\n\n" if system is not None else ""
        for role, text in rest:
            pieces.append((f"<start_of_turn>{'model' if bot(role) else role}\n", False))
            pieces.append((f"{first}{text.strip()}<end_of_turn>\n", bot(role)))
            first = ""
    elif style == "phi":
        for role, text in turns:
            pieces += [(f"<|{role}|>\n", False), (f"{text}<|end|>\n", bot(role))]
    return pieces


# Small templates for single features; each is rendered with the second conversation and the variables below.
FEATURES = [
    "{{ messages | tojson }}",
    "{{ messages[1] | tojson(indent=2) }}|{{ things | tojson(indent=4) }}",
    "{{ things | tojson(ensure_ascii=True, sort_keys=True, separators=(',', ':')) }}",
    "{{ things | tojson }} {{ nothing | tojson }} {{ [] | tojson }} {{ {} | tojson(indent=2) }} {{ [] | tojson(indent=2) }}",
    "{{ 'a\\tb\\\"c\\\\d\\x7f\\u2028 \\b\\f\\r\\n\\x01' | tojson }}",
    "{{ '\\x7f\\u2028😀' | tojson(ensure_ascii=true) }}",
    "{{ strftime_now('%Y-%m-%d %H:%M:%S %d %B %b %A %a %j %I %p %y %%') }}|{{ strftime_now('%-d/%-m') }}",
    "  {% if true %}  \n  x\n  {% endif %}\n\n",
    "{#- comment -#}\n a {#- b #}\n{% raw %}{{ not }}{% endraw %}\n",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }},{% endfor %}",
    "{{ undefined_thing }}|{{ none }}|{{ true }}|{{ 1.0 }}|{{ 3 / 2 }}|{{ 7 // 2 }}|{{ -7 % 3 }}|{{ 2 ** 10 }}",
    "{{ things }}|{{ things.list }}|{{ things.float }}|{{ messages[0] }}",
    "{{ ' a b '.strip() }}|{{ 'abc'.upper() }}|{{ 'a,b'.split(',') }}|{{ 'x'.join(['1','2']) }}|{{ 'aXbX'.rstrip('X') }}|{{ 'ab'.replace('a', 'c') }}",
    "{{ things.items() | list }}|{{ things.get('no', 'default') }}|{{ things.keys() | list }}|{{ 'title me'.title() }}|{{ 'cap me'.capitalize() }}",
    "{{ messages[-1].content[:4] }}|{{ messages[::-1] | map(attribute='role') | join(',') }}|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{% macro m(x, y='d') %}[{{ x }}{{ y }}]{% endmacro %}{{ m('a') }}{{ m('b', y='c') }}",
    "{% set ns = namespace(n=0, last=none) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }} {{ ns.last is none }}",
    "{% set block %} captured {{ 1 }} {% endset %}[{{ block }}]{{ 'a' if false }}{{ 'yes' if messages else 'no' }}",
    "{{ 'a' ~ 1 ~ none }}|{{ 'b' in 'abc' }}|{{ 'role' in messages[0] }}|{{ messages is sequence }}|{{ messages[0] is mapping }}|{{ 'x' is string }}|{{ z is defined }}",
    "{{ messages[0]['content'] | length }}|{{ ['b','a'] | sort | first }}|{{ [1,2,3] | last }}|{{ 'a b' | replace(' ', '_') }}|{{ '  t ' | trim }}|{{ 'q' | upper }}|{{ none | default('d', true) }}",
    "{{ dict(a=1)['a'] }}|{{ things | dictsort }}|{{ [1,2] + [3] }}|{{ (1, 2) }}|{{ 'abc' | list }}|{{ '%s' | format('x') }}",
    "{%- for k, v in things.items() %}{{ k }}={{ v }};{% endfor %}|{% for x in [] %}{% else %}empty{% endfor %}|{{ loop is defined }}",
    "{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='content') | list | tojson }}|{{ [3,1] | max }}|{{ 5 | string + 'x' }}|{{ '5' | int + 1 }}",
    "{{ things.list | join('\\n') | indent(4) }}|{{ 'a\\nb' | indent(2, first=true) }}|{{ 'x' is in ['x'] }}|{{ not false and 1 != 2 }}",
]
THINGS = {"z": 1, "a": "é<&>'\"", "list": [1, 2.5, "x", None, True, {"k": []}], "float": 0.25, "big": 12345678901234567890}

FAILURES = [
    "{{ raise_exception('roles must alternate') }}",
    "{% if %}",
    "{{ nothing_there.attribute }}",
]


def render(template, messages, generation_prompt=False, mask=False, **variables):
    texts, spans = chat.render_jinja_template(
        [messages],
        chat_template=template,
        add_generation_prompt=generation_prompt,
        return_assistant_tokens_mask=mask,
        **variables,
    )
    return (texts[0], spans[0]) if mask else texts[0]


def fix_the_clock():
    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW

    chat.datetime = Fixed


def make_templates():
    fix_the_clock()
    out = {"templates": [], "features": [], "failures": FAILURES, "conversations": CONVERSATIONS, "things": list(THINGS.items())}
    for style, template in TEMPLATES.items():
        cases = []
        for name, messages in CONVERSATIONS.items():
            text = render(template, messages, **VARIABLES)
            pieces = by_hand(style, messages)
            assert "".join(piece for piece, _ in pieces) == text, (style, name, pieces, text)
            prompt = render(template, messages[:-1], True, **VARIABLES)
            cases.append({"conversation": name, "text": text, "prompt": prompt, "learned": pieces})
        out["templates"].append({"style": style, "template": template, "cases": cases})
    cases = []
    for name, messages in CONVERSATIONS.items():
        text, spans = render(GENERATION, messages, mask=True, **VARIABLES)
        cases.append({"conversation": name, "text": text, "spans": spans})
    out["generation"] = {"template": GENERATION, "cases": cases}
    messages = CONVERSATIONS["two turns with a system"]
    for template in FEATURES:
        text = render(template, messages, things=THINGS, nothing=None, **VARIABLES)
        out["features"].append({"template": template, "text": text})
    for template in FAILURES:
        try:
            render(template, messages, **VARIABLES)
        except Exception:
            continue
        raise AssertionError(template)
    write("templates.json", out)


# --- tokenizers ------------------------------------------------------------------------------------------------------------

STARTS = ["b", "d", "f", "gr", "h", "k", "l", "m", "n", "pl", "r", "s", "st", "t", "th", "w"]
MIDDLES = ["a", "e", "i", "o", "u", "ea", "ou", "ing", "er", "and"]
MARKS = [".", ",", "!", "?", ";", "\n", " 12", " 2026", "é", " 日本", "'s", "\n\n", " über"]


def sentences(count):
    """Text from a formula: words of two syllables, and now and then a mark."""
    state = 1
    for _ in range(count):
        words = []
        for _ in range(12):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            a, b, c, d = (state >> s & 0xFF for s in (16, 26, 36, 46))
            word = STARTS[a % len(STARTS)] + MIDDLES[b % len(MIDDLES)] + (STARTS[c % 16] + MIDDLES[d % 10] if d % 3 else "")
            words.append(word.capitalize() if d % 11 == 0 else word)
            if c % 5 == 0:
                words[-1] += MARKS[(state >> 54) % len(MARKS)]
        yield " ".join(words)


STRINGS = [
    "",
    " ",
    "Hello, world!",
    "  two spaces  in  the middle ",
    "tabs\tand\nnew\n\nlines\r\n",
    "the thing and the stone",
    "über Straße naïve café",
    "e\u0301 a\u0308 combining",
    "日本語の文章です。漢字",
    "😀😃 👩‍👩‍👧 🇩🇪",
    "مرحبا שלום",
    "\U0001d54f\U0001f9ea x",
    "1234567890 3.14 12,000",
    "don't we'll I'm they've",
    "<s>inside</s> text <|im_start|>user\nhi<|im_end|>",
    "a<|im_end|>b <|im_end|> c",
    "def f(x):\n    return x ** 2  # ok\n",
    "\u00a0nbsp \u200bzero \ufeffbom",
    "\ufffd replacement \u0000 nul",
    " leading and ▁ block ▁▁",
    "UPPER lower MiXeD",
]

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(sentences(800), trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]),
        ]
    )
    return tokenizer


def sentence_piece():
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    base.train_from_iterator(sentences(800), trainers.BpeTrainer(vocab_size=160))
    raw = json.loads(base.to_str())["model"]
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate(special + [f"<0x{byte:02X}>" for byte in range(256)])}
    for token in sorted(raw["vocab"], key=raw["vocab"].get):
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(merge) for merge in raw["merges"]]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ["<|im_start|>", "<|im_end|>"]])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def unigram():
    """The one that lies here, where there is one: its trainer gives another each time."""
    kept = HERE / "unigram" / "tokenizer.json"
    if kept.exists():
        return Tokenizer.from_file(str(kept))
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(sentences(400), trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return tokenizer


def make_tokenizers():
    out = []
    for name, tokenizer in [("byte-level", byte_level()), ("sentence-piece", sentence_piece()), ("unigram", unigram())]:
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        config = {
            "bos_token": "<s>",
            "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
            "chat_template": GENERATION,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "generation_config.json").write_text(
            json.dumps({"eos_token_id": [tokenizer.token_to_id("</s>"), tokenizer.token_to_id("<|im_end|>")]}), encoding="utf-8"
        )
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
        fast.chat_template = GENERATION
        cases = []
        for text in STRINGS:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            full = tokenizer.encode(text, add_special_tokens=True).ids
            tokenizer.encode_special_tokens = True
            plain = tokenizer.encode(text, add_special_tokens=False).ids
            tokenizer.encode_special_tokens = False
            cases.append(
                {
                    "text": text,
                    "ids": ids,
                    "with_bos": full,
                    "as_text": plain,
                    "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                    "skipped": tokenizer.decode(ids, skip_special_tokens=True),
                }
            )
        chats = []
        for conversation, messages in CONVERSATIONS.items():
            got = fast.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
            chats.append({"conversation": conversation, "ids": got["input_ids"], "mask": got["assistant_masks"]})
        size = max(tokenizer.get_vocab(True).values()) + 1
        out.append({"name": name, "vocabulary": size, "cases": cases, "chats": chats})
    write("tokenizers.json", out)


def write(name, value):
    text = json.dumps(value, ensure_ascii=False, indent=1, default=list)
    (HERE / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    make_templates()
    make_tokenizers()
