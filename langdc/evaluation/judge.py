"""Ask a language model whether open-ended replies are right, over an OpenAI-compatible endpoint.

The protocol is Video-ChatGPT's (quantitative_evaluation/evaluate_activitynet_qa.py of mbzuai-oryx/Video-ChatGPT), as in
lmms-eval 0.7.3 (lmms_eval/tasks/activitynetqa/utils.py): yes or no, and a score from 0 to 5. Accuracy is the share of
yes. Verdicts are kept in a file, so that nothing is asked twice.
"""

import ast
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from langdc import jsonl
from langdc.evaluation.results import LineFile, RunFolder
from langdc.evaluation.settings import JudgeConfig
from langdc.evaluation.tasks import Task
from langdc.hashing import text_hash
from langdc.log import console, get_logger

logger = get_logger(__name__)

SYSTEM = (
    "You are an intelligent chatbot designed for evaluating the correctness of generative outputs for "
    "question-answer pairs. Your task is to compare the predicted answer with the correct answer and determine if "
    "they match meaningfully. Here's how you can accomplish the task:------##INSTRUCTIONS: - Focus on the "
    "meaningful match between the predicted answer and the correct answer.\n- Consider synonyms or paraphrases as "
    "valid matches.\n- Evaluate the correctness of the prediction compared to the answer."
)
USER = (
    "Please evaluate the following video-based question-answer pair:\n\nQuestion: {question}\nCorrect Answer: "
    "{answer}\nPredicted Answer: {prediction}\n\nProvide your evaluation only as a yes/no and score where the "
    "score is an integer value between 0 and 5, with 5 indicating the highest meaningful match. Please generate "
    "the response in the form of a Python dictionary string with keys 'pred' and 'score', where value of 'pred' "
    "is  a string of 'yes' or 'no' and value of 'score' is in INTEGER, not STRING.DO NOT PROVIDE ANY OTHER OUTPUT "
    "TEXT OR EXPLANATION. Only provide the Python dictionary string. For example, your response should look like "
    "this: {{'pred': 'yes', 'score': 4.8}}."
)
"""Both messages word for word: with others, judged figures compare with nobody's."""
MEMORY = "verdicts.jsonl"
"""The file of verdicts in a run's folder."""
WORTH_ANOTHER_TRY = (408, 409, 425, 429)
SHOWN_LETTERS, SHOWN_FAILURES = 200, 5


class JudgeError(ValueError):
    """The judge gave no verdict; the message says where it was asked, what came back and what to do."""


@dataclass(frozen=True)
class Case:
    """What is put to the judge."""

    question: str
    answer: str
    prediction: str


@dataclass(frozen=True)
class Verdict:
    """What the judge says of a reply: yes or no, and 0 to 5. `failed` with a `reason`: it said nothing usable."""

    right: bool = False
    score: int = 0
    failed: bool = False
    reason: str | None = None


class Judge:
    """A judge with its memory: `memory` is the file of verdicts, which any number of runs may share one after another.

    Raises ValueError if the variable of the key is not set.
    """

    def __init__(self, config: JudgeConfig, memory: Path) -> None:
        self.config = config
        self.memory = LineFile(memory)
        self.url = config.url.rstrip("/") + "/chat/completions"
        self._headers = {"Content-Type": "application/json"}
        if config.key_variable is not None:
            key = os.environ.get(config.key_variable)
            if not key:
                raise ValueError(
                    f"The judge's key is to be in the environment variable {config.key_variable}, which is not set. "
                    "Set it, or leave key_variable out for an endpoint that wants none."
                )
            self._headers["Authorization"] = f"Bearer {key}"
        self._down = False

    def key(self, case: Case) -> str:
        """What a verdict depends on, as a hash: model, messages, options."""
        return verdict_key(self.config.model, self.config.options, case)

    def verdicts(self, cases: Iterable[Case]) -> dict[Case, Verdict]:
        """Judge cases, each once: those remembered at once, the others at the endpoint.

        A case that gets no verdict is failed with the reason, and asked again by the next run.
        """
        wanted, failed = {self.key(case): case for case in cases}, 0
        found = {case: _remembered(self.memory.by_key[key]) for key, case in wanted.items() if key in self.memory}
        missing = {key: case for key, case in wanted.items() if key not in self.memory}
        with ThreadPoolExecutor(self.config.workers) as pool:
            try:
                asked = {pool.submit(self.ask, case): (key, case) for key, case in missing.items()}
                shown = track(
                    as_completed(asked), "judging", len(asked), console=console, disable=not console.is_terminal
                )
                for answered in shown:
                    key, case = asked[answered]
                    try:
                        found[case] = answered.result()
                    except JudgeError as error:
                        failed += 1
                        if failed <= SHOWN_FAILURES:
                            logger.warning("No verdict on %r: %s", case.prediction[:SHOWN_LETTERS], error)
                        found[case] = Verdict(failed=True, reason=str(error))
                        continue
                    line = {"type": "verdict", "key": key, "model": self.config.model, **asdict(case)}
                    self.memory.append([{**line, "right": found[case].right, "score": found[case].score}])
            except BaseException:
                pool.shutdown(cancel_futures=True)  # what is under way ends, what waits does not begin
                raise
        if failed > SHOWN_FAILURES:
            logger.warning("No verdict on %d answers in all.", failed)
        return found

    def ask(self, case: Case) -> Verdict:
        """Ask the endpoint, again and again with growing pauses; JudgeError if nothing comes of it.

        After a case for which it could not be reached at all, others try once, until it answers.
        """
        tries = 1 if self._down else 1 + self.config.retries
        for number in range(tries):
            try:
                return self._once(case)
            except _AnotherTry as error:
                reason = error
            if number + 1 < tries:
                time.sleep(self.config.pause * 2**number)
        self._down = isinstance(reason, _Unreachable)
        raise JudgeError(f"{self.url} (model {self.config.model}), asked {tries} time(s): {reason}")

    def _once(self, case: Case) -> Verdict:
        body = json.dumps(_request(self.config.model, self.config.options, case)).encode()
        request = urllib.request.Request(self.url, body, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self.config.timeout) as response:
                reply = response.read()
        except urllib.error.HTTPError as error:
            said = f"HTTP {error.code} {error.reason}."
            if error.code in WORTH_ANOTHER_TRY or error.code >= 500:
                raise _AnotherTry(f"{said} Ask again later.") from None
            raise JudgeError(f"{self.url} (model {self.config.model}): {said} Check url, model and key.") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Unreachable(f"cannot be reached ({error or type(error).__name__}). Check url and timeout.") from None
        self._down = False
        return read_verdict(_content(reply))


def verdict_key(model: str, options: Mapping[str, Any], case: Case) -> str:
    """By what a verdict is remembered: a hash of all that a request says, wherever it is sent."""
    return text_hash(json.dumps(_request(model, options, case), sort_keys=True))


def _request(model: str, options: Mapping[str, Any], case: Case) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER.format(**asdict(case))}]
    return {"model": model, "messages": messages, **options}


class _AnotherTry(ValueError):
    """What may go away by asking again."""


class _Unreachable(_AnotherTry):
    """Nobody answered."""


def read_verdict(text: str) -> Verdict:
    """The verdict in a judge's reply: a dictionary with pred and score, as Python or JSON writes one, anywhere in it.

    A score with a fraction is cut, as in the protocol's code. Raises ValueError if there is none.
    """
    begin, end = text.find("{"), text.find("}")
    try:
        tree = _dictionary(text[begin : end + 1])
        said, score = str(tree["pred"]).strip(" .").lower(), int(float(tree["score"]))
    except (ValueError, SyntaxError, KeyError, TypeError, OverflowError, RecursionError, MemoryError):
        said, score = "", -1
    if said not in ("yes", "no") or not 0 <= score <= 5:
        raise _AnotherTry(
            f"its reply is no verdict: {text[:SHOWN_LETTERS]!r}; it must be like {{'pred': 'yes', 'score': 4}}. "
            "Take another model, or give it more max_tokens."
        )
    return Verdict(right=said == "yes", score=score)


def _dictionary(text: str) -> Mapping[str, Any]:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return json.loads(text)


def _content(reply: bytes) -> str:
    try:
        content = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        raise _AnotherTry(
            f"its reply is no chat completion: {reply[:SHOWN_LETTERS].decode('utf-8', 'replace')!r}. "
            "Is this the url of an OpenAI-compatible interface?"
        )
    return content


def _remembered(line: Mapping[str, Any]) -> Verdict:
    return Verdict(right=line["right"], score=line["score"])


def open_judge(config: JudgeConfig | None, task: Task, output: Path) -> Judge | None:
    """The judge of a run, with its memory in the run's folder; None where the settings name none.

    Raises ValueError if its key is not set, or if the task has questions with options, which need no judge.
    """
    if config is None:
        return None
    if any(question.options for record in task.records for question in record.questions):
        raise ValueError("judge: this task has questions with options, which need no judge. Leave judge out.")
    return Judge(config, output / MEMORY)


def judge_rows(folder: RunFolder, task: Task, judge: Judge) -> None:
    """Have all replies of a run judged that have no verdict yet; what fails is left to the next start."""
    cases = [case for name in folder.names() for line in folder.lines(name) if (case := case_of(line)) is not None]
    judge.verdicts(cases)


def unjudged(folder: RunFolder, judge: JudgeConfig) -> int:
    """How many answers of all rows wait for a verdict."""
    memory, settings = memory_of(folder.directory), judge.model_dump()
    return sum(remembered(memory, settings, folder.lines(name)).count(None) for name in folder.names())


def memory_of(directory: Path) -> dict[str, dict]:
    """The verdicts in a run's folder, by key."""
    return {line["key"]: line for line in jsonl.read(directory / MEMORY)}


def remembered(
    memory: Mapping[str, Mapping], judge: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]
) -> list[Verdict | None]:
    """The verdicts on the answers among some lines, None where there is none yet. `judge`: its settings.

    A question that failed or got no words for an answer is wrong and scores 0 without a judge.
    """
    found: list[Verdict | None] = []
    for line in lines:
        if line["type"] != "answer":
            continue
        case = case_of(line)
        verdict = memory.get(verdict_key(judge["model"], judge["options"], case)) if case is not None else None
        found.append(Verdict() if case is None else None if verdict is None else _remembered(verdict))
    return found


def case_of(line: Mapping[str, Any]) -> Case | None:
    """What of a line is put to the judge; None for lines that are no answers, or hold no words."""
    if line["type"] != "answer" or not (line["answer"] or "").strip():
        return None
    return Case(line["question"], line["expected"], line["answer"].strip())
