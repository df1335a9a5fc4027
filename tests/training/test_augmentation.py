from __future__ import annotations

import random
import sys
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy.signal import welch
from speech_image_retrieval.corpora.schema import CorpusError, load_corpus
from speech_image_retrieval.processing.media import MediaError
from speech_image_retrieval.training.arguments import ArgumentError
from speech_image_retrieval.training.augmentation import (
    ImageAugmentation,
    SpeechAugmentation,
    build_augmentations,
)
from speech_image_retrieval.training.examples import Collator, ExampleReader, SpokenCaptions
from speech_image_retrieval.training.log import read_log
from speech_image_retrieval.training.loop import Trainer
from speech_image_retrieval.training.setup import build_processor
from torch.utils.data import DataLoader

RATE = 16_000
MIN_SECONDS = 0.1
EVERY_SPEECH_EFFECT = {"speed": {}, "reverberation": {}, "noise": {}, "gain": {}, "telephone": {}, "time_mask": {}}
EVERY_IMAGE_EFFECT = {"crop": {}, "colour": {}}
seeds = st.integers(0, 2**32 - 1)


def speech(effects, seed=0):
    return SpeechAugmentation(effects, seed, RATE, MIN_SECONDS)


def rms(samples):
    return np.sqrt(np.square(samples, dtype=np.float64).mean())


def decibels(ratio):
    return 20 * np.log10(ratio)


def tone(hertz, seconds=1.0, peak=0.1):
    return (peak * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def white(seconds=1.0, peak=0.1, seed=0):
    return (peak * np.random.default_rng(seed).uniform(-1, 1, round(seconds * RATE))).astype(np.float32)


@pytest.fixture(scope="module")
def hums(tmp_path_factory):
    """A folder with a low hum at another rate and, in a folder below, one of 2 kHz; shorter than a clip."""
    folder = tmp_path_factory.mktemp("hums")
    (folder / "below").mkdir()
    soundfile.write(folder / "low.flac", np.tile(np.sin(np.arange(441) * 2 * np.pi / 441), 30), 44_100)
    soundfile.write(folder / "below" / "high.wav", tone(2000, 0.25), RATE)
    (folder / "readme.txt").write_text("no recording")
    return str(folder)


@given(seed=seeds, snr=st.floats(-20, 60))
def test_added_noise_has_the_signal_to_noise_ratio_asked_for(seed, snr):
    clip = tone(440, 0.3, peak=0.01)
    noise = speech({"noise": {"snr_db": [snr, snr]}}, seed)(clip, 0, 0).astype(np.float64) - clip
    assert decibels(rms(clip) / rms(noise)) == pytest.approx(snr, abs=0.1)


@given(seed=seeds)
def test_noise_of_a_folder_is_a_stretch_of_one_of_its_recordings(seed, hums):
    clip = white(0.5)
    heard = speech({"noise": {"folder": hums, "snr_db": [10, 10]}}, seed)(clip, 0, 0)
    noise = heard.astype(np.float64) - clip
    assert decibels(rms(clip) / rms(noise)) == pytest.approx(10, abs=0.1)
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    frequency = np.fft.rfftfreq(len(noise), 1 / RATE)[spectrum.argmax()]
    assert frequency == pytest.approx(100, abs=3) or frequency == pytest.approx(2000, abs=3)
    assert spectrum[np.abs(np.fft.rfftfreq(len(noise), 1 / RATE) - frequency) < 30].sum() > 0.95 * spectrum.sum()


def test_every_recording_and_every_colour_of_noise_occurs(hums):
    clip = white(0.5)

    def tilts(options):
        for row in range(40):
            noise = speech({"noise": options})(clip, 0, row) - clip
            frequencies, power = welch(noise, RATE, nperseg=1024)
            yield (
                decibels(power[frequencies > 4000].mean() / power[(frequencies > 50) & (frequencies < 500)].mean()) / 2
            )

    coloured = sorted(tilts({}))
    assert coloured[0] < -20 and coloured[-1] > -3  # brown and white
    assert all(second - first < 6 for first, second in pairwise(coloured))
    recorded = [tilt < -40 for tilt in tilts({"folder": hums})]
    assert any(recorded) and not all(recorded)


@given(seed=seeds, db=st.floats(-60, 15))
def test_gain_is_in_decibels(seed, db):
    clip = white(0.2)
    heard = speech({"gain": {"db": [db, db]}}, seed)(clip, 0, 0)
    assert decibels(rms(heard) / rms(clip)) == pytest.approx(db, abs=0.01)


def test_what_exceeds_full_scale_is_turned_down_and_keeps_its_shape():
    clip = white(0.2, peak=0.8)
    heard = speech({"gain": {"db": [20, 20]}})(clip, 0, 0)
    assert np.abs(heard).max() == 1.0
    np.testing.assert_allclose(heard, clip / np.abs(clip).max(), atol=1e-6)


@given(seed=seeds, factor=st.floats(0.5, 2.0), hertz=st.integers(200, 3000))
def test_speed_divides_duration_and_multiplies_pitch(seed, factor, hertz):
    clip = tone(hertz)
    heard = speech({"speed": {"factor": [factor, factor]}}, seed)(clip, 0, 0)
    assert len(heard) == pytest.approx(len(clip) / factor, abs=2)
    spectrum = np.abs(np.fft.rfft(heard))
    assert spectrum.argmax() * RATE / len(heard) == pytest.approx(hertz * factor, abs=2 * RATE / len(heard))


@pytest.mark.parametrize("samples", [1, 1599, 1600, 1700, 3200, 4000])
def test_speed_leaves_no_less_than_the_processor_takes(samples):
    clip = white()[:samples]
    for row in range(20):
        heard = speech({"speed": {"factor": [0.5, 2]}})(clip, 0, row)
        assert len(heard) >= min(samples, MIN_SECONDS * RATE)


@given(seed=seeds)
def test_the_telephone_has_a_narrow_band(seed):
    heard = speech({"telephone": {}}, seed)(white(2.0), 0, 0)
    assert len(heard) == 2 * RATE
    frequencies, power = welch(heard, RATE, nperseg=1024)
    inside = power[(frequencies > 400) & (frequencies < 3000)].mean()
    assert decibels(power[frequencies > 4100].max() / inside) / 2 < -80


@pytest.mark.parametrize(("hertz", "carried"), [(150, 0), (500, 1), (1000, 1), (3000, 1), (3900, 0), (6000, 0)])
def test_the_telephone_carries_300_to_3400_hz(hertz, carried):
    clip = tone(hertz, peak=0.3)
    for row in range(12):  # every codec
        level = decibels(rms(speech({"telephone": {}})(clip, 0, row)) / rms(clip))
        assert abs(level) < 1 if carried else level < -35


def test_the_telephone_carries_a_voice_at_its_place_and_level():
    clip = tone(1000, peak=0.5) * np.hanning(RATE).astype(np.float32)
    for row in range(12):  # every codec
        heard = speech({"telephone": {}})(clip, 0, row)
        envelopes = [np.convolve(np.abs(samples), np.ones(400), "same") for samples in (clip, heard)]
        assert np.corrcoef(*envelopes)[0, 1] > 0.98
        assert abs(decibels(rms(heard) / rms(clip))) < 2


def test_reverberation_decays_by_60_db_in_its_time():
    click = np.zeros(RATE, np.float32)
    click[100] = 0.5
    for row in range(10):
        heard = speech({"reverberation": {"rt60_seconds": [0.5, 0.5]}})(click, 0, row).astype(np.float64)
        assert np.abs(heard).argmax() == 100 and np.abs(heard[:100]).max() < 1e-6
        first, second = (rms(heard[start : start + 1600]) for start in (1000, 5000))
        assert decibels(first / second) == pytest.approx(30, abs=3)  # 0.25 s apart


@given(seed=seeds, rt60=st.floats(0.01, 5.0))
def test_reverberation_keeps_duration_and_level(seed, rt60):
    clip = white(0.3)
    heard = speech({"reverberation": {"rt60_seconds": [rt60, rt60]}}, seed)(clip, 0, 0)
    assert len(heard) == len(clip)
    assert rms(heard) == pytest.approx(rms(clip), rel=1e-3)
    assert not np.allclose(heard, clip, atol=1e-3)


def test_an_impulse_response_of_a_folder_is_what_is_heard(tmp_path):
    response = np.zeros(8000)
    response[[2000, 2000 + 800]] = 0.8, 0.4  # an echo after 50 ms
    soundfile.write(tmp_path / "echo.wav", response, RATE, subtype="FLOAT")
    click = np.zeros(4000, np.float32)
    click[1000] = 0.5
    heard = speech({"reverberation": {"folder": str(tmp_path)}})(click, 0, 0)
    assert np.flatnonzero(np.abs(heard) > 1e-4).tolist() == [1000, 1800]
    assert heard[1800] / heard[1000] == pytest.approx(0.5, abs=1e-3)


@given(seed=seeds, share=st.floats(0, 0.5))
def test_a_time_mask_silences_one_stretch_of_its_share(seed, share):
    clip = np.full(5000, 0.5, np.float32)
    heard = speech({"time_mask": {"share": [share, share]}}, seed)(clip, 0, 0)
    silent = np.flatnonzero(heard == 0)
    assert len(silent) == int(share * 5000)
    assert (np.diff(silent) == 1).all()
    assert (heard[heard != 0] == 0.5).all() and len(heard) == 5000


@given(
    clip=arrays.arrays(
        np.float32, st.integers(1, 4000), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    ),
    seed=seeds,
)
def test_any_clip_stays_finite_and_within_full_scale(clip, seed):
    heard = speech(EVERY_SPEECH_EFFECT, seed)(clip, 0, 0)
    assert heard.dtype == np.float32 and heard.ndim == 1
    assert len(heard) >= min(len(clip), MIN_SECONDS * RATE)
    assert np.isfinite(heard).all() and np.abs(heard).max() <= 1


@pytest.mark.parametrize("clip", [np.zeros(3000, np.float32), np.ones(1, np.float32)], ids=["silence", "one sample"])
def test_silence_and_single_samples_pass(clip, hums):
    effects = {**EVERY_SPEECH_EFFECT, "noise": {"folder": hums}, "reverberation": {"folder": hums}}
    for row in range(10):
        for options in (EVERY_SPEECH_EFFECT, effects):
            assert np.isfinite(speech(options)(clip, 0, row)).all()


@given(width=st.integers(1, 90), height=st.integers(1, 90), seed=seeds, share=st.floats(0.01, 1.0))
def test_a_crop_has_its_share_of_the_area_and_lies_within(width, height, seed, share):
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    picture = Image.fromarray(np.stack([across, down, across], -1).astype(np.uint8))
    crop = np.asarray(ImageAugmentation({"crop": {"share": [share, share]}}, seed)(picture, 0, 0)).astype(int)
    assert crop[..., 0].size == pytest.approx(share * width * height, abs=width + height)  # of whole pixels
    assert (np.diff(crop[..., 0], axis=1) == 1).all()  # neither mirrored nor beyond the edge
    assert (np.diff(crop[..., 1], axis=0) == 1).all()


def test_crops_are_wider_and_narrower_by_a_third_at_most_and_everywhere():
    picture = Image.new("RGB", (200, 100))
    augment = ImageAugmentation({"crop": {"share": [0.3, 0.6]}}, 0)
    stretches = [np.divide(*augment(picture, 0, row).size) / 2 for row in range(200)]
    assert 0.73 < min(stretches) < 0.8 and 1.25 < max(stretches) < 1.36


def test_colour_changes_brightness_contrast_and_saturation_by_their_factors():
    picture = Image.fromarray(np.random.default_rng(0).integers(60, 120, (20, 20, 3), dtype=np.uint8))
    one = [1.0, 1.0]

    def seen(**options):
        colour = {"brightness": one, "contrast": one, "saturation": one, **options}
        return np.asarray(ImageAugmentation({"colour": colour}, 0)(picture, 0, 0)).astype(float)

    plain = np.asarray(picture).astype(float)
    np.testing.assert_array_equal(seen(), plain)
    assert seen(brightness=[1.5, 1.5]).mean() / plain.mean() == pytest.approx(1.5, abs=0.02)
    assert seen(contrast=[0.5, 0.5]).std() / plain.std() == pytest.approx(0.5, abs=0.02)
    assert np.ptp(seen(saturation=[0.0, 0.0]), axis=-1).max() == 0


def test_an_effect_acts_with_its_probability():
    clip = white(0.1)
    augment = speech({"gain": {"db": [6, 6], "probability": 0.3}})
    louder = [rms(augment(clip, 0, row)) > 1.5 * rms(clip) for row in range(1000)]
    assert 0.25 < np.mean(louder) < 0.35
    never = speech({name: {"probability": 0} for name in EVERY_SPEECH_EFFECT})
    np.testing.assert_array_equal(never(clip, 0, 0), clip)


@pytest.mark.parametrize("change", ["seed", "epoch", "row"])
def test_seed_epoch_and_row_decide(change):
    clip = white(0.2)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 30, 3), dtype=np.uint8))

    def of(seed=3, epoch=1, row=5):
        return (
            speech(EVERY_SPEECH_EFFECT, seed)(clip, epoch, row).tobytes(),
            ImageAugmentation(EVERY_IMAGE_EFFECT, seed)(picture, epoch, row).tobytes(),
        )

    assert of() == of()
    assert all(one != other for one, other in zip(of(), of(**{change: 7}), strict=True))


@pytest.fixture
def processor(make_arguments, tmp_path):
    return build_processor(make_arguments(tmp_path))


@pytest.fixture
def augmented(make_arguments, tmp_path, processor, tones):
    """Makes examples with every effect."""

    def make(split=None, **changes):
        effects = {"speech_augmentation": EVERY_SPEECH_EFFECT, "image_augmentation": EVERY_IMAGE_EFFECT, **changes}
        augmentations = build_augmentations(make_arguments(tmp_path, **effects), processor)
        return SpokenCaptions(split or load_corpus(tones)["train"], ExampleReader(processor, 0, *augmentations))

    return make


def _flat(example):
    return [*example["speech"].values(), *example["image"].values()]


def _same(one, other):
    return all(torch.equal(*parts) for parts in zip(_flat(one), _flat(other), strict=True))


def test_examples_do_not_depend_on_workers_or_order(augmented, processor):
    def epochs(workers, rows):
        examples, heard = augmented(), []
        for epoch in range(2):
            examples.start_epoch(epoch)
            loader = DataLoader(examples, batch_sampler=rows, collate_fn=lambda batch: batch, num_workers=workers)
            heard.append({example["row"]: example for batch in loader for example in batch})
        return heard

    alone = epochs(0, [[row] for row in range(12)])
    together = epochs(2, [[11, 3, 5], [0, 1, 2, 4], [6, 10, 9], [8, 7]])
    for first, second in zip(alone, together, strict=True):
        assert all(_same(first[row], second[row]) for row in range(12))
    for row in range(12):
        earlier, later = (_flat(epoch[row]) for epoch in alone)
        assert not any(
            one.shape == two.shape and torch.equal(one, two)
            for one, two in zip(earlier, later, strict=True)
            if one.is_floating_point()
        )
    Collator(processor.time_axis)(list(alone[0].values()))


def test_global_random_states_neither_matter_nor_change(augmented, hums):
    examples = augmented(speech_augmentation={**EVERY_SPEECH_EFFECT, "noise": {"folder": hums}})
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first = [examples[row] for row in range(12)]
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    random.seed(2)
    np.random.seed(2)
    torch.manual_seed(2)
    assert all(_same(first[row], examples[row]) for row in range(12))


def test_a_crop_of_slowed_speech_lasts_max_seconds(augmented, processor):
    processor.min_seconds, processor.max_seconds = 0.05, 0.15
    slow = augmented(speech_augmentation={"speed": {"factor": [0.5, 0.5]}})
    for row in range(12):
        mask = slow[row]["speech"]["attention_mask"]
        assert mask.shape == (1, 0.15 * RATE)


def test_what_is_augmented_is_not_kept_in_memory_and_the_rest_is(processor, tones):
    def epochs(speech_augmentation, image_augmentation):
        split = load_corpus(tones)["train"]
        examples = SpokenCaptions(
            split, ExampleReader(processor, 0, speech_augmentation, image_augmentation), cache=True
        )
        for epoch in range(2):
            examples.start_epoch(epoch)
            example = examples[4]
            yield example["speech"], example["image"]

    for augmentations, kept in (((speech({"noise": {}}), None), 1), ((None, ImageAugmentation({"colour": {}}, 0)), 0)):
        first, second = epochs(*augmentations)
        assert first[kept] is second[kept]
        (name,) = {"input_values", "pixel_values"} & set(first[1 - kept])
        assert first[1 - kept][name].dtype == torch.float32
        assert not torch.equal(first[1 - kept][name], second[1 - kept][name])


def _run(make_arguments, folder, **changes):
    Trainer(make_arguments(folder, **changes)).run()
    return [row for row in read_log(folder / "log.csv") if row[1] != "pairs_per_second"]


def test_a_run_is_the_same_with_workers_and_another_without_augmentation(make_arguments, tmp_path):
    effects = {"speech_augmentation": EVERY_SPEECH_EFFECT, "image_augmentation": EVERY_IMAGE_EFFECT}
    here = _run(make_arguments, tmp_path / "here", **effects, max_steps=4)
    assert here == _run(make_arguments, tmp_path / "workers", **effects, max_steps=4, num_workers=2)
    assert here != _run(make_arguments, tmp_path / "plain", max_steps=4)


def test_validation_and_test_are_never_augmented(make_arguments, tmp_path, monkeypatch):
    effects = {"speech_augmentation": EVERY_SPEECH_EFFECT, "image_augmentation": EVERY_IMAGE_EFFECT}
    trainer, plain = (Trainer(make_arguments(tmp_path / name, **of)) for name, of in (("a", effects), ("p", {})))

    def refuse(*_):
        raise RuntimeError("augmented")

    monkeypatch.setattr(SpeechAugmentation, "__call__", refuse)
    monkeypatch.setattr(ImageAugmentation, "__call__", refuse)
    with pytest.raises(RuntimeError, match="augmented"):
        trainer.examples[0]
    validations = [one.run_model.validate(one.objective.model, one.validation, True) for one in (trainer, plain)]
    assert validations[0] == validations[1]
    tests = [one.run_model._evaluate(one.objective.model, "test", one.corpus["test"], 2) for one in (trainer, plain)]
    assert tests[0] == tests[1]


@pytest.mark.parametrize(("side", "other", "needs"), [("speech", "image", "waveforms"), ("image", "speech", "pixels")])
def test_augmentation_of_what_a_feature_cache_holds_is_refused(side, other, needs, make_arguments, tmp_path):
    backbone, other_backbone = ("speech", "vision") if side == "speech" else ("vision", "speech")
    frozen = {"feature_cache": True, f"trainable_{backbone}_layers": 0}
    effects = {"speech": {"noise": {}}, "image": {"crop": {}}}
    message = f"{side}_augmentation needs {needs}.*feature_cache=false, or trainable_{backbone}_layers=1"
    with pytest.raises(ArgumentError, match=message):
        make_arguments(tmp_path, **frozen, **{f"{side}_augmentation": effects[side]})
    make_arguments(tmp_path, **{**frozen, "feature_cache": False}, **{f"{side}_augmentation": effects[side]})
    make_arguments(tmp_path, **frozen, **{f"{backbone}_lora": {"r": 2}, f"{side}_augmentation": effects[side]})
    trains = {f"trainable_{other_backbone}_layers": 1, f"{other}_augmentation": effects[other]}
    make_arguments(tmp_path, **frozen, **trains)


def test_speech_is_augmented_while_pictures_come_from_the_feature_cache(make_arguments, make_corpus, tmp_path):
    cached = {"corpus": str(make_corpus()), "feature_cache": True, "trainable_vision_layers": 0, "group_size": 1}
    trainer = Trainer(make_arguments(tmp_path, **cached, speech_augmentation={"noise": {"snr_db": [0, 0]}}))
    first = trainer.examples[0]
    trainer.examples.start_epoch(1)
    second = trainer.examples[0]
    assert "backbone_features" in first["image"] and _same({**first, "speech": {}}, {**second, "speech": {}})
    assert not torch.equal(first["speech"]["input_values"], second["speech"]["input_values"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nois": {}}, "speech_augmentation has no field 'nois'. Did you mean 'noise'?"),
        ({"noise": {"snr": [1, 2]}}, "speech_augmentation.noise has no field 'snr'. Did you mean 'snr_db'?"),
        ({"crop": {}}, "speech_augmentation has no field 'crop'."),
        ({"noise": None}, "speech_augmentation.noise must be a mapping of probability, folder, snr_db"),
        ({"speed": [0.9, 1.1]}, r"speech_augmentation.speed must be a mapping of .*, not \[0.9, 1.1\]"),
        (
            {"speed": {"factor": [1.1, 0.9]}},
            r"speed.factor must be \[lowest, highest\], two numbers between 0.5 and 2",
        ),
        ({"speed": {"factor": [0, 1]}}, r"between 0.5 and 2, not \[0, 1\]"),
        ({"speed": {"factor": 1.1}}, r"speed.factor must be .*, not 1.1"),
        ({"speed": {"factor": [1.0]}}, r"speed.factor must be .*, not \[1.0\]"),
        ({"speed": {"factor": "12"}}, "speed.factor must be .*, not '12'"),
        ({"speed": {"factor": ["a", 1.0]}}, "speed.factor must be .*"),
        ({"gain": {"db": [float("nan"), 1]}}, "gain.db must be .*"),
        ({"time_mask": {"share": [0, 1]}}, "time_mask.share must be .* between 0 and 0.5"),
        ({"telephone": {"probability": 1.5}}, "telephone.probability must be a number between 0 and 1, not 1.5"),
        ({"telephone": {"probability": [0.5]}}, r"telephone.probability must be a number .*, not \[0.5\]"),
        ({"noise": {"folder": "nowhere"}}, r"noise.folder: there are no recordings \(.aif, .*\) in 'nowhere'"),
        ({"noise": {"folder": 5}}, "noise.folder: there are no recordings .* in 5"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options, message, make_arguments, tmp_path, processor):
    with pytest.raises(ArgumentError, match=message):
        build_augmentations(make_arguments(tmp_path, speech_augmentation=options), processor)


def test_numbers_that_yaml_reads_as_text_are_numbers():
    clip = white(0.1)
    quieter = speech({"gain": {"db": ["-1e1", "-1e1"]}})(clip, 0, 0)
    assert decibels(rms(quieter) / rms(clip)) == pytest.approx(-10, abs=0.01)


def test_nothing_asked_for_is_nothing(make_arguments, tmp_path, processor):
    assert build_augmentations(make_arguments(tmp_path), processor) == (None, None)
    assert build_augmentations(make_arguments(tmp_path, image_augmentation={}), processor) == (None, None)


@pytest.mark.parametrize("name", ["reverberation", "telephone"])
def test_a_missing_package_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ArgumentError, match=rf"{name} needs the package scipy: pip install '.*\[augment\]'"):
        speech({name: {}})
    speech({other: {} for other in EVERY_SPEECH_EFFECT if other not in ("reverberation", "telephone")})


@pytest.mark.parametrize(("content", "message"), [(b"no audio", "cannot be decoded"), (None, "is silent")])
def test_an_unusable_recording_is_named(content, message, tmp_path, augmented):
    path = tmp_path / "noise.wav"
    if content is None:
        soundfile.write(path, np.zeros(100), RATE)
    else:
        path.write_bytes(content)
    effects = {"noise": {"folder": str(tmp_path)}}
    with pytest.raises(MediaError, match=f"noise.wav {message}"):
        speech(effects)(white(0.1), 0, 0)
    with pytest.raises(CorpusError, match=f"Caption 'train-0-0': .*noise.wav {message}"):
        augmented(speech_augmentation=effects)[0]
