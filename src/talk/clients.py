"""The OpenAI package of Python against `skein serve`: python3 clients.py BASE_URL KEY MODEL. Prints `ok` at the end."""

import sys
import threading
import time

import openai

base_url, key, model = sys.argv[1:4]
client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)
hello = [{"role": "user", "content": "hello"}]

models = client.models.list().data
assert [m.id for m in models] == [model], models
assert client.models.retrieve(model).object == "model"

chat = client.chat.completions.create(model=model, messages=hello, max_tokens=12, seed=7)
assert chat.object == "chat.completion" and chat.choices[0].message.role == "assistant"
assert chat.choices[0].finish_reason in ("stop", "length")
assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens

chunks = list(
    client.chat.completions.create(
        model=model, messages=hello, max_tokens=12, seed=7, stream=True, stream_options={"include_usage": True}
    )
)
assert chunks[0].choices[0].delta.role == "assistant"
text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
assert text == chat.choices[0].message.content, (text, chat)
assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == chat.choices[0].finish_reason
assert chunks[-1].usage == chat.usage and all(c.usage is None for c in chunks[:-1])

several = client.chat.completions.create(model=model, messages=hello, max_tokens=6, n=3, seed=1, logprobs=True, top_logprobs=2)
assert [c.index for c in several.choices] == [0, 1, 2]
first = several.choices[0].logprobs.content[0]
assert first.logprob <= 0 and len(first.top_logprobs) == 2 and first.top_logprobs[0].logprob >= first.top_logprobs[1].logprob

done = client.completions.create(model=model, prompt=["a", "b"], max_tokens=5, echo=True, temperature=0)
assert [c.text[0] for c in done.choices] == ["a", "b"]
probable = client.completions.create(model=model, prompt="a", max_tokens=3, logprobs=2, temperature=0)
assert len(probable.choices[0].logprobs.top_logprobs) == len(probable.choices[0].logprobs.tokens)
streamed = client.completions.create(model=model, prompt="a", max_tokens=5, temperature=0, stream=True)
assert "a" + "".join(c.choices[0].text for c in streamed) == done.choices[0].text


def fails(kind, **more):
    try:
        client.chat.completions.create(**{"model": model, "messages": hello, "max_tokens": 2, **more})
    except kind as error:
        return error
    raise AssertionError(f"{more} did not fail with {kind}")


assert fails(openai.BadRequestError, tools=[{"type": "function", "function": {"name": "f"}}]).param == "tools"
assert fails(openai.BadRequestError, temperature=9).param == "temperature"
assert fails(openai.BadRequestError, messages=[{"role": "user", "content": "x" * 5000}]).code == "context_length_exceeded"
assert fails(openai.NotFoundError, model="other").code == "model_not_found"
stranger = openai.OpenAI(base_url=base_url, api_key="wrong", max_retries=0)
try:
    stranger.models.list()
    raise AssertionError("a wrong key was taken")
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key"

# Whoever leaves in the middle frees the place: the next one does not wait for the rest.
stream = client.chat.completions.create(model=model, messages=hello, max_tokens=300, stream=True)
next(iter(stream))
stream.close()
since = time.time()
client.chat.completions.create(model=model, messages=hello, max_tokens=1)
assert time.time() - since < 5


def one(seed, into):
    answer = client.chat.completions.create(model=model, messages=hello, max_tokens=12, seed=seed)
    into[seed] = answer.choices[0].message.content


together = {}
threads = [threading.Thread(target=one, args=(seed, together)) for seed in range(16)]
[t.start() for t in threads]
[t.join() for t in threads]
assert together[7] == text and len(together) == 16
print("ok")
