"""The model class of lmms-eval; the only module that needs lmms-eval."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmms_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]  # not a dependency
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from PIL import Image

from langdc.distributed import rank, world_size
from langdc.log import get_logger, track
from langdc.pipeline import OpenVideo, VideoLM
from langdc.tools.lmms_eval import terms

log = get_logger(__name__)

_ONLY_GENERATES = "Model 'langdc' answers tasks with output_type generate_until; this one has %s. Choose another task."


class LangDCModel(lmms):
    """A `VideoLM` for lmms-eval; model arguments say which.

    `pretrained`: a checkpoint directory, ours or a stock model's. `device`, `dtype`: as in `VideoLM.from_pretrained`.
    `compressor`, `kv`, `backbone`: names. `keep`, `tokens` and all other settings are the compressor's; `kv.keep`,
    `backbone.frames` and so on those of the other two. All of them are in the key of lmms-eval's cache; the weights in
    the directory are not, so use another directory for other weights.

    A request that cannot be answered, such as one about a damaged video, gets an empty reply, which counts as wrong and
    is not cached; the log names each and ends with their number. lmms-eval keeps no reply of an interrupted run.
    """

    is_simple = True  # gets a text and visuals, not chat messages

    def __init__(
        self,
        pretrained: str,
        compressor: str | None = None,
        kv: str | None = None,
        backbone: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if str(batch_size) not in ("1", "auto"):
            raise ValueError(f"batch_size={batch_size}: requests are answered one by one; leave it out.")
        self._rank, self._world_size = rank(), world_size()
        chosen = terms.chosen(compressor, kv, backbone, settings)
        self.lm = VideoLM.from_pretrained(str(pretrained), **chosen, device=device, dtype=dtype)
        self.device = self.lm.device  # lmms-eval counts the requests of all processes there
        self._open: dict[str, OpenVideo] = {}

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer requests one by one; consecutive ones about the same video decode, encode and compress it once."""
        replies: list[str] = []
        failed = 0
        for request in track(requests, len(requests), "Answering"):
            text, settings, visuals_of, doc_id, task, split = request.args
            visuals = visuals_of(self.task_dict[task][split][doc_id])
            if not isinstance(visuals, list | tuple):  # tasks without any give None, some give a single one
                visuals = [] if visuals is None else [visuals]
            try:
                replies.append(self._reply(text, list(visuals), settings))
            except ValueError as error:
                log.error("%s, document %s has no reply: %s", task, doc_id, error)
                replies.append("")
                failed += 1
        if failed:
            log.error("%d of %d requests have no reply; they count as wrong.", failed, len(replies))
        return replies

    def _reply(self, text: str, visuals: list[Any], settings: dict[str, Any]) -> str:
        messages, options = terms.messages(text, len(visuals)), terms.generation(settings)
        with TemporaryDirectory() as folder:
            paths = [_file(visual, Path(folder) / f"{number}.png") for number, visual in enumerate(visuals)]
            kept = {path: video for path, video in self._open.items() if path in paths}
            for path in dict.fromkeys(paths):
                kept[path] = kept.get(path) or self.lm.open(path)
        # pictures from memory are files of this request alone
        self._open = {path: video for path, video in kept.items() if not path.startswith(folder)}
        reply = self.lm.converse(messages, [kept[path] for path in paths], **options)
        return terms.cut(reply.text, settings.get("until"))

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: compressed prompts are answered, not scored."""
        raise NotImplementedError(_ONLY_GENERATES % "loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered."""
        raise NotImplementedError(_ONLY_GENERATES % "generate_until_multi_round")

    def clean(self) -> None:
        """Free the memory once all requests are answered: a task may load a judge next."""
        self._open = {}
        if hasattr(self, "lm"):
            del self.lm
        super().clean()


def _file(visual: Any, place: Path) -> str:
    """The path of a video or picture; a picture that a task holds in memory is written to `place`, without loss."""
    if isinstance(visual, str | Path):
        return str(visual)
    if not isinstance(visual, Image.Image):
        raise ValueError(f"A visual is a {type(visual).__name__}; this model reads video files and pictures.")
    visual.convert("RGB").save(place)
    return str(place)
