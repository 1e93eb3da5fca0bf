"""The golden cases on a card, for every way to restore quantized weights that works there."""

import pytest
import torch
from fixtures.checkpoints import golden_case

from ptune import load_model

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA card", allow_module_level=True)

CASES = [
    ("v1", None),
    ("v1-projection", None),
    *(
        (name, way)
        for name in ("v1-int4", "v1-int8", "v2-int4")
        for way in ("nvrtc", "triton", "torch")
    ),
    ("v2", None),
    ("v3", None),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def found(request, model_folder):
    name, backend = request.param
    folder = model_folder(name, "safetensors", 1)
    model = load_model(folder, folder / "prefix", "float32", "cuda", None, backend)
    return golden_case(name), model


def test_loss_and_gradient_of_the_prefix(found):
    case, model = found
    ids, labels = (torch.tensor(case[f"train_{name}"]).cuda() for name in ("input_ids", "labels"))
    loss = model(input_ids=ids, labels=labels, label_logits_only=True, use_cache=False).loss
    assert loss.item() == pytest.approx(case["loss_prefix"], abs=2e-5)
    loss.backward()
    for name, parameter in model.base_model.prefix_encoder.named_parameters():
        expected = case["values"][f"grad.{name}"].cuda()
        gradient = parameter.grad.flatten()[: len(expected)]
        assert (gradient - expected).norm() <= 1e-3 * expected.norm() + 1e-9, name


def test_greedy_continuation(found):
    case, model = found
    rows = torch.tensor(case["prompt_ids"]).cuda()
    mask = (rows != case["config"]["pad_token_id"]).long()
    ids = model.generate(
        input_ids=rows, attention_mask=mask, max_new_tokens=16, do_sample=False, eos_token_id=None
    )
    assert ids[:, rows.shape[1] :].tolist() == case["new_ids_prefix"]
