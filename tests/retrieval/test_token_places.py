from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from speech_image_retrieval import SpeechImageRetrievalModel, SpeechImageRetrievalProcessor
from speech_image_retrieval.modeling.backbones import build_vision_backbone, encode_images
from speech_image_retrieval.retrieval.token_places import (
    Box,
    Grid,
    View,
    cells_box,
    patch_grid,
    speech_token_edges,
    view_of,
)
from transformers import (
    BitImageProcessorPil,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    DeiTImageProcessorPil,
    SeamlessM4TFeatureExtractor,
    ViTConfig,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from ..modeling.tiny import resnet, tiny_config

RATE = 16_000
PLAIN = {"do_rescale": False, "do_normalize": False}
SQUARE = {"height": 224, "width": 224}
IMAGE_PROCESSORS = {
    "squeezed": ViTImageProcessorPil(size=SQUARE, **PLAIN),
    "squeezed to a rectangle": BlipImageProcessorPil(size={"height": 112, "width": 224}, **PLAIN),
    "shortest edge, cropped": CLIPImageProcessorPil(size={"shortest_edge": 256}, crop_size=SQUARE, **PLAIN),
    "squeezed, cropped": DeiTImageProcessorPil(size={"height": 256, "width": 256}, crop_size=SQUARE, **PLAIN),
    "cropped only": BitImageProcessorPil(do_resize=False, crop_size={"height": 150, "width": 150}, **PLAIN),
    "black borders": BitImageProcessorPil(do_resize=False, crop_size={"height": 800, "width": 800}, **PLAIN),
    "ConvNeXt below 384": ConvNextImageProcessorPil(size={"shortest_edge": 224}, **PLAIN),
    "ConvNeXt from 384": ConvNextImageProcessorPil(size={"shortest_edge": 384}, **PLAIN),
}


@pytest.mark.parametrize("size", [(500, 333), (200, 700), (300, 300)])
@pytest.mark.parametrize("processor", IMAGE_PROCESSORS.values(), ids=IMAGE_PROCESSORS)
def test_the_box_is_what_the_processor_shows(processor, size: tuple[int, int]):
    # Red tells how far right a pixel was, green how far down; 0 is border.
    width, height = size
    across, down = np.meshgrid(np.linspace(5, 250, width), np.linspace(5, 250, height))
    picture = Image.fromarray(np.stack([across, down, 0 * across], axis=2).round().astype(np.uint8))
    pixels = processor(picture, return_tensors="np")["pixel_values"][0].astype(float)
    view = view_of(processor, width, height)
    assert (view.height, view.width) == pixels.shape[1:]
    for channel, extent, low, high, shown in (
        (0, width, view.box.left, view.box.right, view.width),
        (1, height, view.box.top, view.box.bottom, view.height),
    ):
        profile = pixels[channel].max(axis=channel)
        places = (profile > 2).nonzero()[0]
        for place in (places[0] + 3, places[len(places) // 2], places[-1] - 3):
            expected = low + (place + 0.5) / shown * (high - low)
            assert (profile[place] - 5) / 245 * extent == pytest.approx(expected, abs=0.02 * extent)


def test_unknown_ways_to_resize_are_refused():
    processor = CLIPImageProcessorPil(size={"longest_edge": 224})
    with pytest.raises(ValueError, match="which part of them the model then sees is not known"):
        view_of(processor, 300, 200)


@pytest.mark.parametrize(
    ("patch_size", "tokens", "size", "grid"),
    [
        (16, 197, (224, 224), (14, 14)),
        (14, 261, (224, 224), (16, 16)),  # four registers
        (16, 196, (224, 224), (14, 14)),  # no [CLS]
        ([8, 16], 29, (64, 56), (7, 4)),
    ],
)
def test_grids(patch_size, tokens: int, size: tuple[int, int], grid: tuple[int, int]):
    assert patch_grid(ViTConfig(patch_size=patch_size), tokens, View(Box(0, 0, 1, 1), *size)) == grid


@pytest.mark.parametrize(("patch_size", "tokens"), [(16, 100), (256, 1)])
def test_tokens_that_are_no_grid_are_refused(patch_size: int, tokens: int):
    with pytest.raises(ValueError, match="no grid of patches over 224 x 224 pixels"):
        patch_grid(ViTConfig(patch_size=patch_size), tokens, View(Box(0, 0, 1, 1), 224, 224))


@pytest.mark.parametrize("downsample_in_first_stage", [False, True])
def test_cells_of_a_residual_network_lie_where_they_see(downsample_in_first_stage: bool):
    config = resnet()
    config.downsample_in_first_stage = downsample_in_first_stage
    backbone = build_vision_backbone(config, None, 0).eval()
    for parameter in backbone.parameters():
        torch.nn.init.constant_(parameter, 0.01)  # so that each pixel counts as its neighbours do
    pixels = torch.rand(1, 3, 320, 256).requires_grad_()
    states = encode_images(backbone, pixels)[0]
    view = View(Box(0, 0, 128, 160), 256, 320)  # a picture of half the size
    grid = Grid(*states.shape[1:])
    cells = cells_box(config, grid, view)
    row, column = grid.rows // 2, grid.columns // 2
    (counts,) = torch.autograd.grad(states[:, row, column].sum(), pixels)
    counts = counts[0].sum(0) / counts.sum()
    down, across = (counts.sum(axis) @ (torch.arange(counts.shape[1 - axis]) + 0.5) / 2 for axis in (1, 0))
    height, width = (cells.bottom - cells.top) / grid.rows, (cells.right - cells.left) / grid.columns
    assert cells.top + (row + 0.5) * height == pytest.approx(down.item(), abs=1.0)
    assert cells.left + (column + 0.5) * width == pytest.approx(across.item(), abs=1.0)


def test_patches_lie_over_what_the_model_saw():
    view = View(Box(10, 20, 234, 244), 112, 112)
    assert cells_box(ViTConfig(patch_size=16), Grid(7, 7), view) == view.box
    assert cells_box(ConvNextConfig(), Grid(3, 3), view) == (10, 20, 202, 212)  # the last 16 pixels make no cell


EXTRACTORS = {
    "hubert-blip2": Wav2Vec2FeatureExtractor(do_normalize=False),
    "whisper-resnet": WhisperFeatureExtractor(feature_size=8),
    "wav2vec2bert-vit": SeamlessM4TFeatureExtractor(feature_size=4, num_mel_bins=4),
}


@pytest.mark.parametrize("pooling", [1, 4])
@pytest.mark.parametrize("max_seconds", [30.0, 0.6])
@pytest.mark.parametrize("kind", EXTRACTORS)
def test_a_sound_changes_the_token_at_its_time(kind: str, max_seconds: float, pooling: int):
    config = tiny_config(kind, speech_layers=[0], speech_pooling=pooling)
    if kind == "whisper-resnet":
        config.speech_config.max_source_positions = 150
    torch.manual_seed(0)
    model = SpeechImageRetrievalModel(config).eval()
    processor = SpeechImageRetrievalProcessor(EXTRACTORS[kind], BlipImageProcessorPil(), max_seconds=max_seconds)
    clip = np.random.default_rng(0).normal(0, 0.01, round(2.03 * RATE)).astype(np.float32)
    edges = speech_token_edges(model, processor, clip)
    assert edges[0] == 0 and edges[-1] == pytest.approx(2.03) and (np.diff(edges) > 0).all()
    reach = np.diff(edges).max() + 0.03  # a neighbour, and half a window
    quiet = features(model, processor, clip)
    assert len(edges) == len(quiet) + 1
    for second in (0.1, 0.77, 1.31, 1.95):
        loud = clip.copy()
        loud[round(second * RATE) : round((second + 0.005) * RATE)] += 0.5
        heard = int((features(model, processor, loud) - quiet).norm(dim=-1).argmax())
        assert edges[heard] - reach < second < edges[heard + 1] + reach


def features(model, processor, clip: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        inputs = processor(audio=[clip], sampling_rate=RATE, return_tensors="pt")
        return model.get_speech_backbone_features(**inputs)[0][0, :, 0]


def test_a_clip_that_is_padded_to_the_shortest_length_ends_after_its_samples():
    torch.manual_seed(0)
    model = SpeechImageRetrievalModel(tiny_config("hubert-blip2"))
    processor = SpeechImageRetrievalProcessor(EXTRACTORS["hubert-blip2"], BlipImageProcessorPil(), min_seconds=0.25)
    assert speech_token_edges(model, processor, np.zeros(1600, np.float32))[-1] == 0.25
