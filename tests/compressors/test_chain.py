"""Compressors one after the other."""

from dataclasses import replace

import pytest
import torch

from langdc.compressors import build
from langdc.compressors.plain import Identity
from langdc.types import FeatureGrid, VideoFeatures, VideoTokens
from tests import tiny
from tests.compressors.grids import alone, check, compress, grid_of, lists, noise, scenes, scores
from tests.reference.dpselect import dpselect
from tests.reference.vectors import Video
from tests.reference.vidcom2 import vidcom2
from tests.reference.visionzip import visionzip

FRAMES, HEIGHT, WIDTH = 8, 3, 5
PLACES = HEIGHT * WIDTH
HALF_THE_FRAMES = {"name": "dpselect", "keep": 0.5}


def chain(grid: FeatureGrid, *members: dict) -> VideoTokens:
    return compress("chain", grid, members=list(members))


def frames_of(video: Video, source: list[int]) -> tuple[list[int], Video]:
    """Which frames whole-frame places are of, and these frames."""
    kept = sorted({s // PLACES for s in source})
    return kept, [video[t] for t in kept]


def test_whole_frames_then_a_selector() -> None:
    """Places count in the first grid; the first member's peaks stay anchors."""
    grid = grid_of(scenes(FRAMES, HEIGHT, WIDTH))
    source, peaks = dpselect(lists(grid.values), 4, 3, True)
    kept, rest = frames_of(lists(grid.values), source)
    then = vidcom2(rest, 15, 0.25, "fixed")
    found = chain(grid, HALF_THE_FRAMES, {"name": "vidcom2", "keep": 0.25})
    expected = [kept[s // PLACES] * PLACES + s % PLACES for s in then]
    check(found, grid, expected)
    assert found.anchor is not None
    assert found.anchor.tolist() == [peaks[source.index(s)] for s in expected]


@pytest.mark.parametrize("saliency", [False, True])
def test_whole_frames_then_one_that_merges_into_places(saliency: bool) -> None:
    """What the encoder attends to goes on with the frames."""
    grid = grid_of(scenes(FRAMES, HEIGHT, WIDTH), saliency)
    kept, rest = frames_of(lists(grid.values), dpselect(lists(grid.values), 4, 3, True)[0])
    source, values = visionzip(rest, [scores(grid)[t] for t in kept], 20, 0.6, 5)
    found = chain(grid, HALF_THE_FRAMES, {"name": "visionzip", "tokens": 20})
    check(found, grid, [kept[s // PLACES] * PLACES + s % PLACES for s in source], values)


def test_as_many_of_each_frame_are_frames_of_one_row() -> None:
    """A second member sets the anchors when the first has none; of merged ones the values are the last member's."""
    grid = grid_of(noise(FRAMES, HEIGHT, WIDTH))
    first = compress("random", grid, tokens=FRAMES * 4)
    assert first.source is not None
    video = torch.tensor(lists(grid.values)).flatten(0, 1)[first.source].view(FRAMES, 4, -1).tolist()
    source, peaks = dpselect(video, 2, 3, False)
    found = chain(grid, {"name": "random", "tokens": FRAMES * 4}, {"name": "dpselect", "keep": 0.25, "per": "patch"})
    check(found, grid, first.source[source].tolist())
    assert found.anchor is not None and found.anchor.tolist() == peaks


def test_a_last_member_that_merges_in_time() -> None:
    """Its tokens have no places; segments count in the frames it was given."""
    grid = grid_of(noise(FRAMES, HEIGHT, WIDTH))
    kept = compress("dpselect", grid, keep=0.5).source
    assert kept is not None
    merged = compress("ma_lmm", FeatureGrid(grid.values.flatten(0, 2)[kept].view(4, HEIGHT, WIDTH, -1)), keep=0.5)
    found = chain(grid, HALF_THE_FRAMES, {"name": "ma_lmm", "keep": 0.5})
    assert found.source is None
    assert torch.equal(found.values, merged.values) and torch.equal(found.segment, merged.segment)


def test_three_members_and_one() -> None:
    grid = grid_of(scenes(FRAMES, HEIGHT, WIDTH))
    members = [HALF_THE_FRAMES, {"name": "uniform", "keep": 0.5}, {"name": "visionzip", "tokens": 7}]
    nested = chain(grid, {"name": "chain", "members": members[:2]}, members[2])
    assert nested.source is not None
    check(chain(grid, *members), grid, nested.source.tolist(), nested.values.tolist())
    one = compress("vidcom2", grid, keep=0.3).source
    assert one is not None
    check(chain(grid, {"name": "vidcom2", "keep": 0.3}), grid, one.tolist())


def test_the_times_and_the_question_go_on() -> None:
    """A member that looks at them gets those of the kept frames."""
    seen = []

    class Looks(Identity):
        def one(self, video: VideoFeatures) -> VideoTokens:
            seen.append(video)
            return super().one(video)

    video = VideoFeatures((grid_of(noise(FRAMES, HEIGHT, WIDTH)),), {}, torch.arange(FRAMES) / 2, torch.ones(3, 8))
    kept = alone(build("dpselect", keep=0.5), video).source // PLACES
    build("chain", members=[HALF_THE_FRAMES, Looks()])([video])
    assert seen[0].seconds.tolist() == (kept[::PLACES] / 2).tolist()
    assert seen[0].question is video.question


def test_it_needs_what_a_member_needs() -> None:
    learned = build("ldpv2", width=8, streams={"video": 4}, sides=[2])
    assert build("chain", members=[learned]).needs == {"encoder"}
    assert build("chain", members=[HALF_THE_FRAMES]).needs == {"projected"}
    with pytest.raises(ValueError, match="LDPv2 reads the encoder's own grids"):
        build("chain", members=[HALF_THE_FRAMES, learned])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "A chain of no compressors"),
        ([{"name": "ma_lmm", "keep": 0.5}, HALF_THE_FRAMES], "merged ones or two streams have no frames"),
        ([{"name": "dycoke", "keep": 0.5}, HALF_THE_FRAMES], "between 5 and 15 tokens; .* Put it first, or last"),
        ([{"name": "nothing"}], "Unknown compressor 'nothing'"),
    ],
)
def test_members_that_do_not_fit(members: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chain(grid_of(noise(FRAMES, HEIGHT, WIDTH)), *members)


def test_two_streams_do_not_go_through() -> None:
    video = tiny.features()
    with pytest.raises(ValueError, match="two streams have no frames"):
        build("chain", members=[HALF_THE_FRAMES, HALF_THE_FRAMES])([video])
    found = alone(build("chain", members=[HALF_THE_FRAMES] * 2), replace(video, projected=video.projected[:1]))
    assert len(found) == 4 * 36


def test_a_pool_comes_first_and_its_tokens_of_all_streams_are_chosen_from() -> None:
    video = tiny.features()
    pool = build("pool", sides=[3, 2])
    chain = build("chain", members=[pool, {"name": "random", "tokens": 40}])
    kept, whole = chain([video]).tokens[0], pool([video]).tokens[0]
    places = [int((whole.values == row).all(1).nonzero()[0]) for row in kept.values]
    assert len(places) == 40 and places == sorted(set(places)) and max(places) >= 16 * 9, "of the second stream, too"
    assert kept.source is None, "no patch of the grid is such a token"
    thrice = build("chain", members=[pool, {"name": "uniform", "keep": 0.5}, {"name": "random", "tokens": 8}])
    with pytest.raises(ValueError, match="one stream"):
        thrice([video])


def test_segments_are_counted_as_by_its_members() -> None:
    """Those who read a video's tokens by segment ask the chain how long one is."""
    pool = {"name": "pool", "sides": [1]}
    assert build("chain", members=[HALF_THE_FRAMES], frames_per_segment=2).frames_per_segment == 2
    assert build("chain", members=[pool, {**HALF_THE_FRAMES, "frames_per_segment": 3}]).frames_per_segment == 3
    found = chain(grid_of(noise(FRAMES, HEIGHT, WIDTH)), {"name": "uniform", "keep": 0.5, "frames_per_segment": 2})
    assert int(found.segment.max()) + 1 == FRAMES // 2


def test_a_chain_that_begins_with_a_pool_in_a_chain() -> None:
    """All its members count, not its pool alone."""
    members = [{"name": "pool", "sides": [2]}, HALF_THE_FRAMES, {"name": "random", "tokens": 3}]
    grid = grid_of(noise(FRAMES, HEIGHT, WIDTH))
    nested = chain(grid, {"name": "chain", "members": members[:2]}, members[2])
    assert torch.equal(nested.values, chain(grid, *members).values)
