"""Ask a language model whether open-ended replies are right, over an OpenAI-compatible endpoint.

The protocol is Video-ChatGPT's (quantitative_evaluation/evaluate_activitynet_qa.py of mbzuai-oryx/Video-ChatGPT), as in
lmms-eval 0.7.3 (lmms_eval/tasks/activitynetqa/utils.py): yes or no, and a score from 0 to 5. Accuracy is the share of
yes. Verdicts are kept in a file, so that nothing is asked twice.
"""

import ast
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from langdc.endpoint import SHOWN_LETTERS, Endpoint, EndpointError, Transient
from langdc.evaluate.answers import without_thinking
from langdc.evaluate.folder import EvalFolder, LineFile
from langdc.evaluate.settings import JudgeConfig
from langdc.evaluate.tasks import Task
from langdc.hashing import json_hash
from langdc.log import get_logger, track

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
"""Both messages word for word: judged figures can only be compared with those of the same messages."""
VERDICTS = "verdicts.jsonl"
"""The file of verdicts in an evaluation's folder."""
SHOWN_FAILURES = 5


@dataclass(frozen=True)
class Case:
    """What is put to the judge."""

    question: str
    answer: str
    prediction: str

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "Case | None":
        """The part of a line that the judge reads; None for lines that it does not judge, or whose reply is empty."""
        said = without_thinking(line["answer"] or "").strip() if cls.judged(line) else ""
        return cls(line["question"], line["expected"], said) if said else None

    @staticmethod
    def judged(line: Mapping[str, Any]) -> bool:
        """Whether a line is an answer that the judge judges: all with something to compare, where no line says more."""
        return line["type"] == "answer" and line.get("judged", True) and bool(line["expected"].strip())

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages of the request to the judge."""
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER.format(**asdict(self))}]

    def key(self, judge: Mapping[str, Any]) -> str:
        """A hash of all that a request to a judge (its settings) says, wherever it is sent."""
        return json_hash({"model": judge["model"], "messages": self.messages, **judge["options"]})


@dataclass(frozen=True)
class Verdict:
    """The judge's verdict on a reply: yes or no, and 0 to 5. `failed` with a `reason`: it gave none."""

    right: bool = False
    score: int = 0
    failed: bool = False
    reason: str | None = None

    @classmethod
    def read(cls, text: str) -> "Verdict":
        """The first dictionary (Python or JSON) in a reply, its score cut to an integer; ValueError without one."""
        text = without_thinking(text)
        found = text[text.find("{") : text.find("}") + 1]
        for parse in (ast.literal_eval, json.loads):
            with suppress(ValueError, SyntaxError, KeyError, TypeError, OverflowError, RecursionError, MemoryError):
                tree = parse(found)
                pred, score = str(tree["pred"]).strip(" .").lower(), int(float(tree["score"]))
                if pred in ("yes", "no") and 0 <= score <= 5:
                    return cls(right=pred == "yes", score=score)
        raise Transient(
            f"its reply is no verdict: {text[:SHOWN_LETTERS]!r}; it must be like {{'pred': 'yes', 'score': 4}}. "
            "Take another model, or give it more max_tokens."
        )

    @classmethod
    def of_answers(cls, directory: Path, judge: Mapping, lines: Iterable[Mapping]) -> "list[Verdict | None]":
        """The verdicts in an evaluation's folder on the judged answers among some lines, None where there is none yet.

        `judge`: its settings. A question that failed or got no words for an answer is wrong and scores 0 unjudged.
        """
        cases = [Case.of(line) for line in lines if Case.judged(line)]
        known = cls.kept(LineFile(directory / VERDICTS, alone=True), {c.key(judge): c for c in cases if c is not None})
        return [cls() if case is None else known.get(case) for case in cases]

    @classmethod
    def kept(cls, file: LineFile, cases: Mapping[str, Case]) -> "dict[Case, Verdict]":
        """The verdicts in a file on cases, which are given by key; ValueError if one is on another case."""
        lines = {case: file.by_key[key] for key, case in cases.items() if key in file}
        for case, line in lines.items():
            if line["type"] != "verdict" or line != {**line, **asdict(case)}:
                where = f"{file.path}, {line['key']},"
                raise ValueError(f"{where} is on another reply than that to {case.question!r}. Restore or delete it.")
        return {case: cls(line["right"], line["score"]) for case, line in lines.items()}


class Judge:
    """A judge and its verdicts, kept in the file `path`; any number of evaluations may use `path`, one after another.

    ValueError if the variable of the key is not set.
    """

    def __init__(self, config: JudgeConfig, path: Path) -> None:
        self.config, self.verdicts_file = config, LineFile(path, alone=True)
        self.endpoint = Endpoint(config)

    @classmethod
    def of(cls, config: JudgeConfig | None, task: Task, output: Path) -> "Judge | None":
        """The judge of an evaluation, None without settings; ValueError if the task needs one, or has only options."""
        questions = [question for record in task.records for question in record.questions]
        judged = [question.kind for question in questions if task.judged(question)]
        if config is None and judged:
            raise ValueError(
                f"The kind {judged[0]!r} is scored by a judge, and the config has none. Say which, as judge: "
                "{url: https://server/v1, model: NAME}."
            )
        if config is None:
            return None
        if not judged and any(question.options for question in questions):
            raise ValueError("judge: this task has questions with options, which need no judge. Leave judge out.")
        return cls(config, output / VERDICTS)

    def judge(self, folder: EvalFolder) -> None:
        """Judge all replies in a folder that have no verdict yet; those that fail are left to the next start."""
        self.verdicts(case for name in folder.names() for line in folder.lines(name) if (case := Case.of(line)))

    def unjudged(self, folder: EvalFolder) -> int:
        """How many answers of all entries wait for a verdict."""
        settings, where = self.config.model_dump(), folder.directory
        return sum(Verdict.of_answers(where, settings, folder.lines(name)).count(None) for name in folder.names())

    def key(self, case: Case) -> str:
        """A hash of all that a request says, wherever it is sent: model, messages, options."""
        return case.key(self.config.model_dump())

    def verdicts(self, cases: Iterable[Case]) -> dict[Case, Verdict]:
        """Judge cases, each once: from the file, else by the endpoint; those without a verdict are `failed`."""
        by_key = {self.key(case): case for case in cases}
        found = Verdict.kept(self.verdicts_file, by_key)
        with ThreadPoolExecutor(self.config.workers) as pool:
            try:
                asked = {pool.submit(self._asked, c): (key, c) for key, c in by_key.items() if c not in found}
                for future in track(as_completed(asked), len(asked), "Judging"):
                    key, case = asked[future]
                    verdict = found[case] = future.result()
                    if not verdict.failed:
                        line = {"type": "verdict", "key": key, "model": self.config.model, **asdict(case)}
                        self.verdicts_file.append([{**line, "right": verdict.right, "score": verdict.score}])
            except BaseException:
                pool.shutdown(cancel_futures=True)  # requests under way end, those that wait do not begin
                raise
        failed = [verdict for verdict in found.values() if verdict.failed]
        for verdict in failed[:SHOWN_FAILURES]:
            logger.warning("No verdict: %s", verdict.reason)
        if len(failed) > SHOWN_FAILURES:
            logger.warning("No verdict on %d answers in all.", len(failed))
        return found

    def _asked(self, case: Case) -> Verdict:
        try:
            return self.ask(case)
        except EndpointError as error:
            return Verdict(failed=True, reason=f"on {case.prediction[:SHOWN_LETTERS]!r}: {error}")

    def ask(self, case: Case) -> Verdict:
        """Ask the endpoint; EndpointError if no verdict comes."""
        return self.endpoint.ask(case.messages, Verdict.read)
