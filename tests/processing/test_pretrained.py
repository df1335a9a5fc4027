from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from speech_image_retrieval import SpeechImageRetrievalProcessor
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    AutoConfig,
    AutoProcessor,
    BertConfig,
    Blip2Config,
    Blip2VisionConfig,
    CLIPConfig,
    ConvNextConfig,
    Data2VecAudioConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    HubertConfig,
    PreTrainedConfig,
    ResNetConfig,
    SeamlessM4TFeatureExtractor,
    SiglipConfig,
    ViTConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from ..fresh_process import run_script

from_backbones = SpeechImageRetrievalProcessor.from_backbones

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
BIT = {
    **IMAGENET,
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 64},
    "crop_size": {"height": 56, "width": 56},
    "do_center_crop": True,
}
VISION = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SPEECH_BACKBONES = {
    "hubert": (HubertConfig(), Wav2Vec2FeatureExtractor(do_normalize=False)),
    "wav2vec2": (Wav2Vec2Config(), Wav2Vec2FeatureExtractor()),
    "wavlm": (WavLMConfig(), Wav2Vec2FeatureExtractor(do_normalize=False)),
    "data2vec": (Data2VecAudioConfig(), Wav2Vec2FeatureExtractor()),
    "whisper": (WhisperConfig(num_mel_bins=16), WhisperFeatureExtractor(feature_size=16)),
    "wav2vec2-bert": (
        Wav2Vec2BertConfig(feature_projection_input_dim=32),
        SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16, padding_value=1),
    ),
}
# Preprocessor configurations in the form that the Hub's repositories of these models have.
VISION_BACKBONES = {
    "blip-2": (
        Blip2Config(vision_config={**VISION, "image_size": 40}),
        {"image_processor_type": "BlipImageProcessor", "size": {"height": 40, "width": 40}},
        40,
    ),
    "vit": (
        ViTConfig(**VISION),
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
        32,
    ),
    "dinov2": (Dinov2Config(**{**VISION, "patch_size": 14}), BIT, 56),
    "dinov3": (
        DINOv3ViTConfig(**VISION),
        {**IMAGENET, "image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 48, "width": 48}},
        48,
    ),
    "clip": (
        CLIPConfig(vision_config=VISION),
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "do_center_crop": True},
        32,
    ),
    "siglip": (
        SiglipConfig(vision_config=VISION),
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}},
        32,
    ),
}


def write_backbone(folder: Path, config: PreTrainedConfig, preprocessor=None) -> Path:
    config.save_pretrained(folder)
    if isinstance(preprocessor, dict):
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    elif preprocessor is not None:
        preprocessor.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def hubert(tmp_path) -> Path:
    return write_backbone(tmp_path / "hubert", *SPEECH_BACKBONES["hubert"])


@pytest.fixture
def vit(tmp_path) -> Path:
    return write_backbone(tmp_path / "vit", *VISION_BACKBONES["vit"][:2])


@pytest.fixture
def dinov2(tmp_path) -> Path:
    return write_backbone(tmp_path / "dinov2", *VISION_BACKBONES["dinov2"][:2])


@pytest.mark.parametrize("name", SPEECH_BACKBONES)
def test_speech_is_prepared_as_the_backbone_was_trained(name, vit, tmp_path):
    config, extractor = SPEECH_BACKBONES[name]
    processor = from_backbones(write_backbone(tmp_path / "speech", config, extractor), vit)
    assert type(processor.feature_extractor) is type(extractor)
    assert processor.feature_extractor.to_dict() == extractor.to_dict()
    clip = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    ours = processor(audio=clip, sampling_rate=16_000)
    assert ours["attention_mask"].all()
    theirs = extractor(clip, sampling_rate=16_000, return_tensors="pt")
    name = extractor.model_input_names[0]
    frames = ours[name].shape[processor.time_axis + 1]
    torch.testing.assert_close(
        ours[name], theirs[name].narrow(processor.time_axis + 1, 0, frames), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", VISION_BACKBONES)
def test_pictures_are_prepared_as_the_backbone_was_trained(name, hubert, tmp_path):
    config, preprocessor, size = VISION_BACKBONES[name]
    processor = from_backbones(hubert, write_backbone(tmp_path / "vision", config, preprocessor))
    grey = processor(images=Image.new("RGB", (90, 70), (51, 102, 204)))["pixel_values"]
    assert grey.shape == (1, 3, size, size)
    default = processor.image_processor
    mean = torch.tensor(preprocessor.get("image_mean", default.image_mean))
    std = torch.tensor(preprocessor.get("image_std", default.image_std))
    expected = (torch.tensor([0.2, 0.4, 0.8]) - mean) / std
    torch.testing.assert_close(grey[0].mean((1, 2)), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["blip-2", "dinov2", "dinov3", "clip"])
def test_the_processor_is_the_same_after_saving(name, hubert, tmp_path):
    config, preprocessor, _ = VISION_BACKBONES[name]
    processor = from_backbones(hubert, write_backbone(tmp_path / "vision", config, preprocessor), min_seconds=0.3)
    processor.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": "speech_image_retrieval"}))
    loaded = AutoProcessor.from_pretrained(tmp_path / "saved")
    picture = Image.effect_noise((90, 70), 60).convert("RGB")
    inputs = {"audio": np.linspace(0, 1, 9_000), "images": picture, "sampling_rate": 16_000}
    first, second = processor(**inputs), loaded(**inputs)
    assert all(torch.equal(first[part], second[part]) for part in processor.model_input_names)
    assert loaded.min_seconds == 0.3


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (HubertConfig(), {"do_normalize": True, "return_attention_mask": True, "sampling_rate": 16_000}),
        (Data2VecAudioConfig(), {"do_normalize": True, "return_attention_mask": True}),
        (WhisperConfig(num_mel_bins=128), {"feature_size": 128, "hop_length": 160}),
        (Wav2Vec2BertConfig(), {"num_mel_bins": 80, "stride": 2}),
    ],
)
def test_a_speech_folder_without_a_preprocessor_configuration_gets_its_kinds(config, expected, vit, tmp_path):
    extractor = from_backbones(write_backbone(tmp_path / "speech", config), vit).feature_extractor
    assert {name: getattr(extractor, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("config", "kind", "size"),
    [
        (Blip2Config(vision_config=VISION), "Blip", 32),
        (Blip2VisionConfig(**VISION), "Blip", 32),
        (CLIPConfig(vision_config=VISION), "CLIP", 32),
        (SiglipConfig(vision_config=VISION), "Siglip", 32),
        (ViTConfig(**VISION), "ViT", 32),
        (DINOv3ViTConfig(**VISION), "ViT", 32),
        (Dinov2Config(image_size=518, patch_size=14), "Bit", 224),
        (Dinov2Config(image_size=28, patch_size=14), "Bit", 28),
    ],
)
def test_a_vision_folder_without_a_preprocessor_configuration_gets_its_kinds(config, kind, size, hubert, tmp_path):
    processor = from_backbones(hubert, write_backbone(tmp_path / "vision", config))
    assert type(processor.image_processor).__name__ == f"{kind}ImageProcessorPil"
    assert processor(images=Image.new("RGB", (50, 40)))["pixel_values"].shape == (1, 3, size, size)
    imagenet = config.model_type.startswith("dino")
    assert imagenet == (tuple(processor.image_processor.image_mean) == tuple(IMAGENET["image_mean"]))


def test_overrides_change_single_options(hubert, dinov2):
    processor = from_backbones(
        hubert,
        dinov2,
        feature_extractor={"do_normalize": True},
        image_processor={"size": {"height": 112, "width": 112}, "do_center_crop": False},
        max_seconds=12.0,
    )
    assert processor.feature_extractor.do_normalize and processor.max_seconds == 12
    assert list(processor.image_processor.image_mean) == IMAGENET["image_mean"]
    # Without the crop, the whole width of the picture is there.
    picture = Image.new("RGB", (200, 100))
    picture.paste("white", (0, 0, 10, 100))
    pixels = processor(images=picture)["pixel_values"]
    assert pixels.shape == (1, 3, 112, 112) and pixels[0, 0, 56, 0] > pixels[0, 0, 56, 56]


def test_options_that_a_saved_configuration_does_not_name_can_be_changed(vit, tmp_path):
    speech = write_backbone(
        tmp_path / "speech", HubertConfig(), {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}
    )
    assert not from_backbones(speech, vit, feature_extractor={"do_normalize": False}).feature_extractor.do_normalize


def test_a_type_replaces_the_backbones_own(hubert, dinov2):
    processor = from_backbones(
        hubert, dinov2, image_processor={"type": "BlipImageProcessorPil", "size": {"height": 28, "width": 42}}
    )
    assert processor(images=Image.new("RGB", (50, 40)))["pixel_values"].shape == (1, 3, 28, 42)


def test_whisper_is_given_no_more_than_it_has_positions_for(hubert, vit, tmp_path):
    extractor = WhisperFeatureExtractor(feature_size=16)
    short = write_backbone(tmp_path / "short", WhisperConfig(num_mel_bins=16, max_source_positions=250), extractor)
    assert from_backbones(short, vit).max_seconds == 5
    assert from_backbones(short, vit, max_seconds=4).max_seconds == 4
    with pytest.raises(ValueError, match=r"max_seconds=6 is more than the 5 s that .*short has positions for"):
        from_backbones(short, vit, max_seconds=6)
    assert from_backbones(hubert, vit).max_seconds == 30
    assert from_backbones(hubert, vit, max_seconds=60).max_seconds == 60


def test_pictures_that_are_no_whole_patches_are_refused(hubert, dinov2, tmp_path):
    fitting = from_backbones(
        hubert, dinov2, image_processor={"size": {"height": 70, "width": 84}, "do_center_crop": False}
    )
    assert fitting(images=Image.new("RGB", (9, 9)))["pixel_values"].shape[2:] == (70, 84)
    with pytest.raises(ValueError, match=r"75 x 84 pixels .* 14 x 14 patches of .*dinov2.* of 70 x 84 or 84 x 84\."):
        from_backbones(hubert, dinov2, image_processor={"size": {"height": 75, "width": 84}, "do_center_crop": False})
    blip = write_backbone(tmp_path / "blip", *VISION_BACKBONES["blip-2"][:2])
    with pytest.raises(ValueError, match=r"36 x 36 pixels .* 8 x 8 patches of .*blip.* of 32 x 32 or 40 x 40\."):
        from_backbones(hubert, blip, image_processor={"size": {"height": 36, "width": 36}})


def test_pictures_of_different_sizes_are_refused(hubert, vit, dinov2):
    shortest_edge = {"size": {"shortest_edge": 56}, "do_center_crop": False}
    for vision, options in ((vit, {"do_resize": False}), (dinov2, shortest_edge)):
        with pytest.raises(ValueError, match="would keep their proportions"):
            from_backbones(hubert, vision, image_processor=options)


def test_a_crop_larger_than_the_picture_is_refused(hubert, dinov2):
    with pytest.raises(ValueError, match=r"resized to 28 x 28 and then cropped to 56 x 56.*'do_center_crop': False"):
        from_backbones(hubert, dinov2, image_processor={"size": {"height": 28, "width": 28}})


@pytest.mark.parametrize("config", [ResNetConfig(), ConvNextConfig()])
def test_convolutional_backbones_have_their_processor_too(config, hubert, tmp_path):
    preprocessor = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}, "crop_pct": 0.875}
    processor = from_backbones(hubert, write_backbone(tmp_path / "conv", config, preprocessor))
    assert processor(images=Image.new("RGB", (50, 40)))["pixel_values"].shape == (1, 3, 64, 64)


@pytest.mark.parametrize("name", ["whisper", "wav2vec2-bert"])
def test_features_of_another_width_are_refused(name, vit, tmp_path):
    config, extractor = SPEECH_BACKBONES[name]
    wider = type(extractor)(feature_size=20, **({"num_mel_bins": 20} if name == "wav2vec2-bert" else {}))
    folder = write_backbone(tmp_path / "speech", config, wider)
    with pytest.raises(
        ValueError, match=r"reads (16 mel bins|32 features).* gives (20|40): pass feature_extractor=\{"
    ):
        from_backbones(folder, vit)
    fitting = {"feature_size": 16, **({"num_mel_bins": 16} if name == "wav2vec2-bert" else {})}
    batch = from_backbones(folder, vit, feature_extractor=fitting)(audio=np.ones(8_000), sampling_rate=16_000)
    assert batch["input_features"].shape[1 if name == "whisper" else 2] == (16 if name == "whisper" else 32)


def test_wav2vec2_bert_is_not_given_waveforms(vit, tmp_path):
    # transformers 5.23 would take Wav2Vec2FeatureExtractor where the folder does not name a class.
    folder = write_backbone(tmp_path / "speech", Wav2Vec2BertConfig(), {"feature_size": 1})
    with pytest.raises(ValueError, match=r"cannot read what Wav2Vec2FeatureExtractor gives: .*SeamlessM4T"):
        from_backbones(folder, vit)


@pytest.mark.parametrize(
    ("speech", "vision", "overrides", "complaint"),
    [
        ("bert", "vit", {}, r"bert \(bert\) has no feature extractor for speech"),
        ("vit", "vit", {}, r"vit \(vit\) has no feature extractor for speech"),
        ("ast", "vit", {}, "fed by ASTFeatureExtractor; speech backbones can be fed by"),
        ("hubert", "bert", {}, r"bert \(bert\) has no image processor that runs here"),
        ("hubert", "hubert", {}, r"hubert \(hubert\) has no image processor that runs here"),
        ("empty", "vit", {}, "configuration of .*empty cannot be read"),
        ("missing", "vit", {}, "configuration of .*missing cannot be read"),
        ("hubert", "vit", {"feature_extractor": {"do_normalise": 1}}, "no option 'do_normalise'. Did you mean 'do_no"),
        ("hubert", "vit", {"image_processor": {"siez": 32}}, "no option 'siez'. Did you mean 'size'"),
        ("hubert", "vit", {"feature_extractor": {"type": "ViTConfig"}}, "feature_extractor: 'ViTConfig' is no"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(hubert, vit, tmp_path, speech, vision, overrides, complaint):
    write_backbone(tmp_path / "bert", BertConfig())
    write_backbone(tmp_path / "ast", ASTConfig(), ASTFeatureExtractor())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=complaint) as refusal:
        from_backbones(tmp_path / speech, tmp_path / vision, **overrides)
    assert "\n" not in str(refusal.value)


def test_a_hub_name_that_cannot_be_reached_is_named(vit):
    with pytest.raises(
        ValueError, match=r"^The configuration of no/where cannot be read \(.*\) Give the Hub name[^\n]*$"
    ):
        from_backbones("no/where", vit)


def test_the_exported_code_stands_alone(hubert, dinov2, tmp_path, monkeypatch):
    saved = tmp_path / "saved"
    monkeypatch.setattr(SpeechImageRetrievalProcessor, "_auto_class", None)
    SpeechImageRetrievalProcessor.register_for_auto_class("AutoProcessor")
    from_backbones(hubert, dinov2).save_pretrained(saved)
    use = f"""
import sys
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained({str(saved)!r}, trust_remote_code=True)
assert "speech_image_retrieval" not in sys.modules
other = type(processor).from_backbones({str(hubert)!r}, {str(dinov2)!r})
assert type(other.image_processor) is type(processor.image_processor)
assert other.image_processor.crop_size == processor.image_processor.crop_size
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = run_script(use, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_wrong_type_in_a_configuration_is_named_in_one_line(hubert, vit):
    config = json.loads((hubert / "config.json").read_text())
    (hubert / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    with pytest.raises(ValueError, match=r"^The configuration of \S+ is wrong: [^\n]*'hidden_size'[^\n]*$"):
        from_backbones(hubert, vit)


def test_each_backbone_has_hub_options_of_its_own(hubert, vit, monkeypatch):
    seen, load = [], AutoConfig.from_pretrained
    monkeypatch.setattr(
        AutoConfig, "from_pretrained", lambda repo, **options: seen.append((repo, options)) or load(repo, **options)
    )
    from_backbones(hubert, vit, speech_hub_options={"revision": "abc"})
    assert seen[:2] == [(str(hubert), {"revision": "abc"}), (str(vit), {})]


def test_a_misspelt_option_is_refused_with_the_nearest(hubert, vit):
    with pytest.raises(ValueError, match=r"no option 'max_second'\. Did you mean 'max_seconds'"):
        from_backbones(hubert, vit, max_second=3)
