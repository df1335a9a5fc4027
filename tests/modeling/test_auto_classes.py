"""`import speech_image_retrieval` makes transformers' Auto classes know the model."""

from __future__ import annotations

from speech_image_retrieval import SpeechImageRetrievalConfig, SpeechImageRetrievalModel
from transformers import Blip2VisionConfig, HubertConfig

from ..fresh_process import run_script

SCRIPT = """
import sys
import speech_image_retrieval
from transformers import AutoConfig, AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
assert type(model) is speech_image_retrieval.SpeechImageRetrievalModel, type(model)
assert type(AutoConfig.from_pretrained(sys.argv[1])) is speech_image_retrieval.SpeechImageRetrievalConfig
"""


def test_a_saved_model_loads_by_automodel_without_trusting_remote_code(tmp_path):
    speech = HubertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, conv_dim=(8,) * 7
    )
    vision = Blip2VisionConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    multimodal = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    speech.num_conv_pos_embedding_groups = 2
    config = SpeechImageRetrievalConfig(speech_config=speech, vision_config=vision, multimodal_config=multimodal)
    SpeechImageRetrievalModel(config).save_pretrained(tmp_path)
    done = run_script(SCRIPT, tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
