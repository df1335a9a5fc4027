"""Recordings and pictures of the training split as every epoch hears and sees them anew.

Each effect is a small class of its options, which are annotated with their lowest and highest value. Speech effects
map (samples,) float64 at `rate` Hz to the same, picture effects a PIL picture to another. All randomness comes from a
generator of the seed, the epoch and the row.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import numpy as np
import soundfile
import soxr
from PIL import Image, ImageEnhance

from ..processing.media import RECORDING_SUFFIXES, MediaError, load_speech
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
from .arguments import ArgumentError, TrainingArguments, refuse_unknown_names

# Without a number of its own, a generator would repeat the one that places the crop of the same row.
_SPEECH_STREAM, _IMAGE_STREAM = 1, 2
_TELEPHONE_RATE = 8000
_TELEPHONE_CODECS = ("ULAW", "ALAW", "GSM610")  # G.711 of landlines, full-rate GSM
_RUMBLE = 50  # Hz; the noise's power would otherwise go to frequencies below any voice
_DIRECT_TO_REVERBERANT_DB = (0, 10)  # a speaker at the room's critical distance, or at a third of it


class SpeechAugmentation:
    """The speech effects of a configuration, one after the other as sound meets them on its way: speed,
    reverberation, noise, gain, telephone, time mask.

    Args:
        options: those of each effect by its name, as in `TrainingArguments.speech_augmentation`.
        sampling_rate: of the clips, in Hz.
        min_seconds: an effect that would leave less of a clip is left out.

    Raises:
        ArgumentError: an effect or an option does not exist, has an impossible value, or needs a missing package.
    """

    def __init__(self, options: Mapping[str, Any], seed: int, sampling_rate: int, min_seconds: float):
        self._effects = _effects(options, _SPEECH_EFFECTS, "speech_augmentation")
        self._seed, self._rate = seed, sampling_rate
        self._min_samples = round(min_seconds * sampling_rate)

    def __call__(self, clip: np.ndarray, epoch: int, row: int) -> np.ndarray:
        """The clip of a row as it is heard in an epoch, both (samples,) float32 and finite. What an effect makes
        exceed 1 is turned down as a whole, which keeps the signal-to-noise ratio.

        Raises:
            MediaError: a recording of noise or of an impulse response cannot be used.
        """
        rng = np.random.default_rng((self._seed, epoch, row, _SPEECH_STREAM))
        heard = clip.astype(np.float64)
        for effect in self._effects:
            if rng.random() < effect.probability:
                changed = effect(heard, self._rate, rng)
                if len(changed) >= min(len(heard), self._min_samples):
                    heard = changed / max(1.0, np.abs(changed).max())
        return heard.astype(np.float32)


class ImageAugmentation:
    """The picture effects of a configuration: crop, then colour. Never a mirror image, for left and right are spoken
    about, nor another hue, for so are colours.

    Args:
        options: those of each effect by its name, as in `TrainingArguments.image_augmentation`.

    Raises:
        ArgumentError: an effect or an option does not exist, or has an impossible value.
    """

    def __init__(self, options: Mapping[str, Any], seed: int):
        self._effects = _effects(options, _IMAGE_EFFECTS, "image_augmentation")
        self._seed = seed

    def __call__(self, picture: Image.Image, epoch: int, row: int) -> Image.Image:
        """The RGB picture as a row is seen in an epoch."""
        rng = np.random.default_rng((self._seed, epoch, row, _IMAGE_STREAM))
        for effect in self._effects:
            if rng.random() < effect.probability:
                picture = effect(picture, rng)
        return picture


def build_augmentations(
    arguments: TrainingArguments, processor: SpeechImageRetrievalProcessor
) -> tuple[SpeechAugmentation | None, ImageAugmentation | None]:
    """What the arguments ask for, with the errors of either class; None where it is nothing."""
    speech, image, seed = arguments.speech_augmentation, arguments.image_augmentation, arguments.seed
    return (
        SpeechAugmentation(speech, seed, processor.sampling_rate, processor.min_seconds) if speech else None,
        ImageAugmentation(image, seed) if image else None,
    )


class Recordings:
    """The recordings in a folder and the folders below it."""

    def __init__(self, folder: str, where: str):
        files = Path(folder).rglob("*") if isinstance(folder, str) else ()
        self._paths = sorted(path for path in files if path.suffix.lower() in RECORDING_SUFFIXES)
        if not self._paths:
            raise ArgumentError(
                f"{where}: there are no recordings ({', '.join(sorted(RECORDING_SUFFIXES))}) in {folder!r}"
            )

    def draw(self, rate: int, rng: np.random.Generator) -> np.ndarray:
        """(samples,) float32 of one of them, not all 0."""
        path = self._paths[rng.integers(len(self._paths))]
        recording = load_speech(path, None, rate)
        if not recording.any():
            raise MediaError(f"The recording {path} is silent.")
        return recording


def _rms(samples: np.ndarray) -> float:
    return math.sqrt(np.square(samples).mean())


@dataclass(frozen=True, kw_only=True)
class _Effect:
    probability: Annotated[float, 0.0, 1.0] = 1.0  # of acting on a clip or a picture


@dataclass(frozen=True, kw_only=True)
class Speed(_Effect):
    """Faster or slower, which also raises or lowers the pitch (speed perturbation: Ko et al., 2015)."""

    factor: Annotated[tuple[float, float], 0.5, 2.0] = (0.9, 1.1)

    def __call__(self, clip: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
        return soxr.resample(clip, rate, rate / rng.uniform(*self.factor))


@dataclass(frozen=True, kw_only=True)
class Reverberation(_Effect):
    """A room, at the same level and without the sound's delay: by an impulse response from a folder, or else by
    noise that decays as in a room of a reverberation time (Polack, 1988)."""

    folder: Recordings | None = None
    rt60_seconds: Annotated[tuple[float, float], 0.01, 5.0] = (0.2, 0.6)  # until the sound has decayed by 60 dB

    def __call__(self, clip: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
        from scipy.signal import oaconvolve  # takes 0.6 s to import

        response = self.folder.draw(rate, rng) if self.folder else self._decaying_noise(rate, rng)
        wet = oaconvolve(clip, response[np.abs(response).argmax() :])[: len(clip)]
        return wet * (_rms(clip) / (_rms(wet) or 1.0))

    def _decaying_noise(self, rate: int, rng: np.random.Generator) -> np.ndarray:
        samples = round(rng.uniform(*self.rt60_seconds) * rate)
        response = rng.standard_normal(samples) * 10 ** (-3 * np.arange(samples) / samples)
        response *= 10 ** (-rng.uniform(*_DIRECT_TO_REVERBERANT_DB) / 20) / np.linalg.norm(response)
        response[0] = 1.0
        return response


@dataclass(frozen=True, kw_only=True)
class Noise(_Effect):
    """Noise at a signal-to-noise ratio: a stretch of a recording from a folder, or else of any colour from white
    over pink to brown."""

    folder: Recordings | None = None
    snr_db: Annotated[tuple[float, float], -20.0, 100.0] = (5.0, 30.0)

    def __call__(self, clip: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
        noise = self._stretch(len(clip), rate, rng) if self.folder else _coloured_noise(len(clip), rate, rng)
        level = _rms(clip) * 10 ** (-rng.uniform(*self.snr_db) / 20)
        return clip + noise * (level / (_rms(noise) or 1.0))

    def _stretch(self, samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
        recording = self.folder.draw(rate, rng)
        start = rng.integers(len(recording))
        return recording.astype(np.float64).take(np.arange(start, start + samples), mode="wrap")


def _coloured_noise(samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum *= np.maximum(np.fft.rfftfreq(samples, 1 / rate), _RUMBLE) ** -rng.uniform(0, 1)
    return np.fft.irfft(spectrum, samples)


@dataclass(frozen=True, kw_only=True)
class Gain(_Effect):
    """Louder or quieter."""

    db: Annotated[tuple[float, float], -60.0, 60.0] = (-6.0, 6.0)

    def __call__(self, clip: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
        return clip * 10 ** (rng.uniform(*self.db) / 20)


@dataclass(frozen=True, kw_only=True)
class Telephone(_Effect):
    """The telephone's band of 300 to 3400 Hz, and one of its codecs at 8 kHz."""

    def __call__(self, clip: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
        from scipy.signal import butter, sosfilt

        band = sosfilt(butter(8, (300, 3400), "bandpass", fs=rate, output="sos"), clip)
        line, codec = io.BytesIO(), str(rng.choice(_TELEPHONE_CODECS))
        soundfile.write(line, soxr.resample(band, rate, _TELEPHONE_RATE), _TELEPHONE_RATE, codec, format="WAV")
        line.seek(0)
        heard = soxr.resample(soundfile.read(line)[0], _TELEPHONE_RATE, rate)
        return np.pad(heard[: len(clip)], (0, max(0, len(clip) - len(heard))))


@dataclass(frozen=True, kw_only=True)
class TimeMask(_Effect):
    """Silence somewhere, for a share of the clip's duration."""

    share: Annotated[tuple[float, float], 0.0, 0.5] = (0.0, 0.1)

    def __call__(self, clip: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
        length = int(rng.uniform(*self.share) * len(clip))
        start = rng.integers(len(clip) - length + 1)
        return np.concatenate([clip[:start], np.zeros(length), clip[start + length :]])


@dataclass(frozen=True, kw_only=True)
class Crop(_Effect):
    """A part of the picture, of a share of its area; the processor resizes it as it would the whole."""

    share: Annotated[tuple[float, float], 0.01, 1.0] = (0.6, 1.0)

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        share = rng.uniform(*self.share)
        # Wider or narrower by up to 4 / 3, as long as both sides are within the picture.
        stretch = min(4 / 3, 1 / share) ** rng.uniform(-1, 1)
        width = max(1, round(picture.width * math.sqrt(share * stretch)))
        height = max(1, round(picture.height * math.sqrt(share / stretch)))
        left, top = rng.integers(picture.width - width + 1), rng.integers(picture.height - height + 1)
        return picture.crop((left, top, left + width, top + height))


@dataclass(frozen=True, kw_only=True)
class Colour(_Effect):
    """Brightness, contrast and saturation, each times a factor."""

    brightness: Annotated[tuple[float, float], 0.1, 10.0] = (0.8, 1.2)
    contrast: Annotated[tuple[float, float], 0.1, 10.0] = (0.8, 1.2)
    saturation: Annotated[tuple[float, float], 0.0, 10.0] = (0.8, 1.2)

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(*self.brightness))
        picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(*self.contrast))
        return ImageEnhance.Color(picture).enhance(rng.uniform(*self.saturation))


# In the order in which they act.
_SPEECH_EFFECTS = {
    "speed": Speed,
    "reverberation": Reverberation,
    "noise": Noise,
    "gain": Gain,
    "telephone": Telephone,
    "time_mask": TimeMask,
}
_IMAGE_EFFECTS = {"crop": Crop, "colour": Colour}


def _effects(options: Mapping[str, Any], kinds: Mapping[str, type[_Effect]], where: str) -> list[Any]:
    refuse_unknown_names(options, kinds, where)
    return [_effect(kinds[name], options[name], f"{where}.{name}") for name in kinds if name in options]


def _effect(kind: type[_Effect], options: Any, where: str) -> _Effect:
    known = get_type_hints(kind, include_extras=True)
    if not isinstance(options, Mapping):
        raise ArgumentError(f"{where} must be a mapping of {', '.join(known)}, for instance {{}}, not {options!r}")
    refuse_unknown_names(options, known, where)
    if kind in (Reverberation, Telephone) and find_spec("scipy") is None:
        raise ArgumentError(f"{where} needs the package scipy: pip install 'speech-image-retrieval[augment]'")
    return kind(**{name: _checked(value, known[name], f"{where}.{name}") for name, value in options.items()})


def _checked(value: Any, hint: Any, where: str) -> Any:
    if Recordings in get_args(hint):
        return None if value is None else Recordings(value, where)
    kind, lowest, highest = get_args(hint)
    expected, values = ("a number", [value]) if kind is float else ("[lowest, highest], two numbers", value)
    try:  # float, for YAML 1.1 reads 1e-1 as text
        numbers = [float(number) for number in values] if isinstance(values, (list, tuple)) else []
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != (1 if kind is float else 2) or not lowest <= numbers[0] <= numbers[-1] <= highest:
        raise ArgumentError(f"{where} must be {expected} between {lowest:g} and {highest:g}, not {value!r}")
    return numbers[0] if kind is float else tuple(numbers)


__all__ = ["ImageAugmentation", "SpeechAugmentation", "build_augmentations"]
