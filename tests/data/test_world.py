"""Laws of the built-in world: captions tell the truth, held-out means never seen, physics holds, edges are sub-pixel."""

import json
from itertools import product

import numpy as np
import pytest

from sora.world.judge.adherence import EVENTS, Facts
from sora.world.judge.silhouettes import OUTLINES, coverage
from sora.world.language import PALETTE, SHAPES, parse
from sora.world.render import BACKGROUNDS, relief
from sora.world.scenes import MOTIONS, WAY
from sora.world.world import World

SMALL = {"sizes": ((32, 32), (24, 40), (40, 24), (32, 24)), "seconds": (1.0, 2.0), "rates": (8.0, 12.0)}


def chroma(frames):
    """How far a pixel is from grey, enough to tell the palette from every background."""
    return frames.max(-1).astype(int) - frames.min(-1)


def test_a_clip_is_a_function_of_seed_index_and_split_alone():
    one, other = World(seed=4, **SMALL), World(seed=4, **SMALL)
    later = [other.clip(index) for index in (7, 3)]  # another order
    for first, again in zip([one.clip(7), one.clip(3)], later, strict=True):
        assert np.array_equal(first.frames, again.frames)
        assert (first.captions, first.facts, first.truth, first.key) == (again.captions, again.facts, again.truth, again.key)
    assert World(seed=5, **SMALL).scene(7).captions != one.scene(7).captions
    keys = {one.clip(index, split=split).key for index in range(4) for split in ("train", "heldout")}
    assert len(keys) == 8


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_both_captions_read_back_exactly(split):
    world = World(seed=1, **SMALL)
    for index in range(400):
        scene = world.scene(index, split=split)
        assert parse(scene.captions["dense"]) == scene.facts, scene.captions["dense"]
        assert parse(scene.captions["short"]) == scene.facts.vague(), scene.captions["short"]


def test_captions_say_what_the_truth_says():
    world = World(seed=2, image_share=0.0, **SMALL)
    for index in range(120):
        clip = world.clip(index)
        truth, facts = clip.truth, clip.facts
        assert truth["motion"] == facts.motion and truth["event"] == EVENTS.get(facts.motion)
        assert [item["colour"] for item in truth["objects"]] == list(facts.colours)
        for item, way, speed in zip(truth["objects"], facts.directions, facts.speeds, strict=True):
            step = np.subtract(item["centres"][-1], item["centres"][0])
            if facts.motion in ("linear", "occlude"):
                assert np.dot(step, WAY[way]) > 0.2 * min(truth["size"])
                pace = np.abs(step).sum() / min(truth["size"]) / ((truth["frames"] - 1) / truth["fps"])
                assert {"slowly": pace <= 0.2201, "steadily": 0.2199 < pace <= 0.501, "quickly": pace > 0.499}[speed]
            if facts.motion == "bounce":
                assert step[0] * WAY[way][0] > 0 and truth["contacts"]
            if facts.motion == "pan":
                assert np.dot(truth["camera"][-1], WAY[way]) > 0 and np.dot(step, WAY[way]) < 0
            if facts.motion == "rotate":
                assert (item["angles"][-1] > item["angles"][0]) == (way == "clockwise")
            if facts.motion == "still":
                assert not step.any() and way is None


def test_free_captions_are_read_as_far_as_they_go():
    assert parse("A red ball rolls left").directions == ("left",)
    facts = parse("a red circle and a blue box move towards the right")
    assert (facts.count, facts.shapes, facts.directions) == (2, ("circle", "square"), ("right", "right"))
    assert parse("a cat on a sofa") == Facts()
    assert parse("a green star spins counter-clockwise").directions == ("anticlockwise",)


def test_facts_survive_json_and_refuse_what_they_do_not_know():
    facts = World(seed=1, **SMALL).scene(5).facts
    assert Facts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    with pytest.raises(ValueError, match="colour"):
        Facts.from_json({"colour": "red"})


@pytest.mark.slow
def test_held_out_combinations_are_never_seen_in_training_but_their_pairs_are():
    world = World(seed=3, **SMALL)
    train, held = (set(world.combinations[split]) for split in ("train", "heldout"))
    assert held and not train & held
    assert abs(len(held) / len(train | held) - world.held_out) < 0.02
    for places in ((0, 1), (0, 2), (1, 2)):
        assert {tuple(combo[i] for i in places) for combo in held} <= {tuple(combo[i] for i in places) for combo in train}
    for split, allowed in (("train", train), ("heldout", held)):
        for index in range(300):
            facts = world.scene(index, split=split).facts
            assert set(zip(facts.colours, facts.shapes, facts.directions, strict=True)) <= allowed
    for prompt in world.prompts(60):
        assert set(zip(prompt.facts.colours, prompt.facts.shapes, prompt.facts.directions, strict=True)) <= held


def test_prompts_are_films_and_the_same_again():
    world = World(seed=3, image_share=0.5, **SMALL)
    prompts = world.prompts(30, seed=9)
    assert prompts == world.prompts(30, seed=9) and prompts != world.prompts(30, seed=8)
    assert prompts[:10] == world.prompts(10, seed=9)
    for prompt in prompts:
        assert prompt.frames > 1 and parse(prompt.text_dense) == prompt.facts and prompt.size in world.sizes


def test_a_world_without_held_out_combinations_says_so():
    with pytest.raises(ValueError, match="held_out"):
        World(held_out=0.0).clip(0, split="heldout")


@pytest.mark.slow
def test_every_part_of_the_world_is_drawn():
    world = World(seed=6, **SMALL)
    scenes = [world.scene(index) for index in range(600)]
    assert {scene.facts.motion for scene in scenes} == {*MOTIONS, None}
    assert {shape for scene in scenes for shape in scene.facts.shapes} == set(SHAPES)
    assert {colour for scene in scenes for colour in scene.facts.colours} == set(PALETTE)
    assert {scene.background.kind for scene in scenes} == set(BACKGROUNDS)
    assert {scene.facts.count for scene in scenes} == {1, 2}
    assert {(scene.stage.height, scene.stage.width) for scene in scenes} == set(SMALL["sizes"])


def test_frame_counts_fit_the_stride_and_images_are_one_frame():
    world = World(stride_time=4, image_share=0.3, seconds=(0.3, 1.1, 2.0), rates=(7.0, 12.0))
    counts = [len(world.scene(index).stage.times) for index in range(200)]
    assert all((count - 1) % 4 == 0 for count in counts)
    assert 0.2 < np.mean([count == 1 for count in counts]) < 0.4
    assert World(stride_time=1, image_share=0.0, seconds=(2.0,), rates=(8.0,)).clip(0).frames.shape[0] == 16


@pytest.mark.parametrize(("shape", "angle"), list(product(SHAPES, (0.0, 0.3))))
def test_half_a_pixel_of_motion_moves_the_mean_by_half_a_pixel(shape, angle):
    y, x = np.mgrid[:24, :24].astype(np.float32)
    turned = np.full((1, 1), angle)
    masses, centres = [], []
    for offset in np.arange(0.0, 1.0, 0.125):
        mask = coverage(shape, x - 11.0 - offset, y - 11.3, radius=5.0, angle=turned)
        masses.append(mask.sum())
        centres.append((mask * x).sum() / mask.sum() - offset)
    assert np.ptp(centres) < 0.06
    assert np.ptp(masses) / np.mean(masses) < 0.03
    assert set(np.unique(mask)) - {0.0, 1.0}, "edges have no soft pixels"


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_is_that_of_dense_sampling(shape):
    fine = 8
    y, x = np.mgrid[: 20 * fine, : 20 * fine].astype(np.float32)
    exact = coverage(shape, x - 9.6 * fine, y - 9.9 * fine, radius=5.0 * fine).reshape(20, fine, 20, fine).mean((1, 3))
    y, x = np.mgrid[:20, :20].astype(np.float32)
    shift = 0.5 - 0.5 / fine  # of the middle of a block of samples
    quick = coverage(shape, x - (9.6 - shift), y - (9.9 - shift), radius=5.0)
    assert (
        np.sqrt(np.square(exact - quick).mean()) < 0.03
        and np.abs(exact - quick).max() < 0.3
        and abs(exact.sum() - quick.sum()) < 0.03 * exact.sum()
    )


def test_objects_are_whole_inside_the_frame_and_apart():
    world = World(seed=7, **SMALL)
    for index in range(200):
        scene = world.scene(index)
        for actor in scene.play.actors:
            low = actor.centres.min(0) - OUTLINES[actor.shape].wide * actor.radius
            assert low[0] >= 0 and actor.centres[:, 1].max() < scene.stage.height
            assert actor.centres[:, 0].max() + OUTLINES[actor.shape].wide * actor.radius <= scene.stage.width
        if len(scene.play.actors) == 2:
            one, two = scene.play.actors
            gap = np.linalg.norm(one.centres - two.centres, axis=-1).min()
            assert gap > 2.0 + OUTLINES[one.shape].reach * one.radius + OUTLINES[two.shape].reach * two.radius - 1e-6


def test_pixels_stand_where_the_truth_says():
    world = World(seed=8, objects=(1,), backgrounds=("plain", "graded"), motions=("linear", "still", "bounce"), **SMALL)
    for index in range(25):
        clip = world.clip(index)
        coloured = chroma(clip.frames).astype(float)
        coloured -= np.minimum(coloured, 40)  # tints of the background
        y, x = np.mgrid[: clip.frames.shape[1], : clip.frames.shape[2]] + 0.5
        mass = coloured.sum((1, 2))
        seen = np.stack([(coloured * x).sum((1, 2)) / mass, (coloured * y).sum((1, 2)) / mass], -1)
        assert np.abs(seen - np.array(clip.truth["objects"][0]["centres"])).max() < 0.35


def test_a_thrown_object_falls_with_one_acceleration_between_touches():
    world = World(seed=9, motions=("bounce",), image_share=0.0, sizes=((48, 48), (40, 64)), seconds=(2.0, 3.0), rates=(24.0,))
    touches = 0
    for index in range(25):
        truth = world.clip(index).truth
        centres = np.array(truth["objects"][0]["centres"])
        times = np.arange(len(centres)) / truth["fps"]
        assert np.ptp(np.diff(centres[:, 0])) < 0.003, "sideways speed is constant"
        ends = [*truth["contacts"], times[-1]]
        inside = times < ends[0]
        fall = np.diff(centres[inside, 1], 2)
        for before, after in zip([0.0, *ends[:-1]], ends, strict=True):
            inside = (times > before) & (times < after)
            if inside.sum() > 3 and after in truth["contacts"]:
                assert np.abs(np.diff(centres[inside, 1], 2) - fall.mean()).max() < 0.005
        touches += len(truth["contacts"])
        assert fall.mean() > 0 and centres[:, 1].max() == pytest.approx(centres[:, 1].max(initial=0.0))
    assert touches > 25


def test_a_hidden_object_is_out_of_sight_and_comes_back_where_it_should():
    world = World(seed=10, motions=("occlude",), image_share=0.0, **SMALL)
    for index in range(60):
        clip = world.clip(index)
        item = clip.truth["objects"][0]
        hidden, coloured = np.array(item["hidden"]), chroma(clip.frames) > 60
        assert 1 <= hidden.sum() < len(hidden) and not hidden[0] and not hidden[-1]
        assert not coloured[hidden].any(), "something shows through the bar"
        last = len(hidden) - 1
        y, x = np.nonzero(coloured[last])
        assert np.hypot(x.mean() + 0.5 - item["centres"][last][0], y.mean() + 0.5 - item["centres"][last][1]) < 1.2
        whole = np.maximum(chroma(clip.frames) - 40, 0).sum((1, 2))
        assert whole[0] >= 0.85 * whole.max() and whole[-1] >= 0.85 * whole.max(), "it starts and ends in full view"


def test_a_pan_moves_background_and_objects_alike():
    world = World(seed=11, motions=("pan",), image_share=0.0, objects=(1,), sizes=((48, 48),), seconds=(2.0,), rates=(8.0,))
    for index in range(12):
        truth = world.clip(index).truth
        camera, centres = np.array(truth["camera"]), np.array(truth["objects"][0]["centres"])
        assert np.abs((centres + camera) - centres[0]).max() < 0.003
        scene = world.scene(index)
        field = relief(scene.background, scene.stage, scene.play.camera)
        whole = np.round(scene.play.camera).astype(int)
        exact = relief(scene.background, scene.stage, whole.astype(float))
        dx, dy = whole[-1]
        moved = np.roll(exact[-1], (dy, dx), (0, 1))[max(dy, 0) : 48 + min(dy, 0), max(dx, 0) : 48 + min(dx, 0)]
        assert np.abs(moved - exact[0][max(dy, 0) : 48 + min(dy, 0), max(dx, 0) : 48 + min(dx, 0)]).max() < 0.05
        assert np.abs(field[-1] - field[0]).max() > 5


def test_truth_is_json():
    world = World(seed=12, **SMALL)
    for index in range(30):
        truth = world.clip(index).truth
        assert json.loads(json.dumps(truth, allow_nan=False)) == truth


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (32, 24), (36, 64), (256, 256), (90, 160)])
def test_every_size_is_drawn_at_that_size(size):
    world = World(seed=13, sizes=[list(size)], seconds=[1.0], rates=[8.0])  # lists, as YAML has them
    for index in range(6):
        frames = world.clip(index).frames
        assert frames.shape[1:] == (*size, 3) and frames.dtype == np.uint8
        assert chroma(frames).max() > 90


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"shapes": ("blob",)}, "shapes"),
        ({"colours": ()}, "colours"),
        ({"motions": ("fly",)}, "motions"),
        ({"objects": (3,)}, "objects"),
        ({"sizes": ((16, 16),)}, "sizes"),
        ({"seconds": ()}, "seconds"),
        ({"image_share": 1.5}, "image_share"),
        ({"radius": (0.3, 0.5)}, "radius"),
        ({"radius": (0.15,)}, "radius"),
        ({"stride_time": 0}, "stride_time"),
        ({"backgrounds": ("plain",)}, "rippled"),
    ],
)
def test_wrong_settings_are_named(settings, key):
    with pytest.raises(ValueError, match=key):
        World(**settings)


def test_scenes_that_cannot_be_played_are_an_error_with_a_way_out():
    world = World(motions=("occlude",), seconds=(0.4,), rates=(8.0,), image_share=0.0)
    with pytest.raises(ValueError, match="longer seconds"):
        world.clip(0)
