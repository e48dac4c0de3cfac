"""Clips that cannot be encoded: listed, counted, never trained on."""

import json
from pathlib import Path

import numpy as np
import pytest

from sora.data.index.index import Caption, ClipFacts, DatasetWriter, Index
from sora.encode import encode_clips
from sora.system.draws import sample_id
from sora.text import cache
from sora.video.files import write
from tests.data.index.test_latents import HASH, TEXT, data, plan, vae


@pytest.fixture
def spoilt(tmp_path) -> Path:
    """Clips 1 and 3 do not decode to their end; the index is of exactly these bytes. Clip 5 is smaller than a patch."""
    folder, draw = tmp_path / "spoilt", np.random.default_rng(0)
    with DatasetWriter(folder, licence="CC0-1.0", max_bytes=40_000) as writer:
        for number in range(6):
            frames, side, media = (5, 32, tmp_path / "clip.mp4") if number != 5 else (1, 6, tmp_path / "clip.mp4")
            write(media, draw.integers(0, 256, (frames, side, side, 3), dtype=np.uint8), 8.0, lossless=True)
            content = bytearray(media.read_bytes())
            if number in (1, 3):
                place = content.index(b"mdat")
                size = int.from_bytes(content[place - 4 : place], "big") - 8
                content[place + 4 + size // 4 : place + 4 + size] = bytes(size - size // 4)
            writer.write(ClipFacts(f"clip-{number}", frames, 8.0, side, side, (Caption("short", "clip 1", "test"),)), bytes(content))
            media.unlink()
        writer.finish({})
    cache.extend(folder, TEXT, ["", "clip 1"], shard=4)
    return folder


def test_clips_that_cannot_be_encoded_are_listed_and_never_trained_on(spoilt):
    index, settings = Index.open(spoilt), {"batch": 4, "multiple": (1, 2, 2)}
    assert len(index.described["shards"]) > 1
    for share, count in ((0.0, 1), (0.4, 3)):
        with pytest.raises(ValueError, match=rf"^{count} of 6 clips cannot be read, more than max_bad_share={share:g} allows"):
            encode_clips(index, vae(), HASH, **settings, max_bad_share=share)
    assert encode_clips(index, vae(), HASH, **settings, max_bad_share=0.5) == 0
    listed = [json.loads(line) for line in (spoilt / f"latents-{HASH[:8]}-refused.jsonl").read_text().splitlines()]
    assert [(entry["key"], entry["reason"].split()[-1]) for entry in listed][2] == ("clip-5", "encode.multiple")
    assert [entry["key"] for entry in listed] == ["clip-1", "clip-3", "clip-5"]
    assert all("does not decode cleanly" in entry["reason"] or "decodes" in entry["reason"] for entry in listed[:2])
    source = data(spoilt, max_bad_share=0.0)
    made = plan(source)
    assert made.skipped == {"could not be encoded": 3}
    steps = source.batches(made)
    seen = {sample for step in range(12) for batch in steps[step] for sample in batch.sample_ids}
    assert seen == {sample_id(f"clip-{number}") for number in (0, 2, 4)}
    with pytest.raises(ValueError, match="clip-1 has no latents: it could not be encoded"):
        source.latents[0].latents(1)
    from sora.ingest.check import check

    latent_faults = [fault for fault in check(index, decode=0.0, workers=0, seconds=60, memory_gb=16).faults if "latents" in str(fault)]
    assert not latent_faults
    with pytest.raises(ValueError, match="more than max_bad_share=0.2 allows"):  # they count whoever met them
        encode_clips(index, vae(), HASH, **settings, max_bad_share=0.2)
