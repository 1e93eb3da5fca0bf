"""Memory estimates against the peak of the allocator on the CPU."""

import dataclasses
import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ptune.base.architecture import RELEASED, Architecture, Storage, weight_bytes
from ptune.device.memory import (
    Inference,
    Memory,
    Prefix,
    Training,
    host_bytes,
    inference_bytes,
    largest_micro_batch,
    savings,
    training_bytes,
)
from ptune.generation.generate import generate_all
from ptune.generation.sampling import Sampling
from ptune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from ptune.models.chatglm2 import ChatGLM2ForConditionalGeneration
from ptune.models.chatglm2_layout import ChatGLM2Config
from ptune.models.lora import LoraForm, attach_lora, find_targets
from ptune.models.native_architecture import lora_sizes
from ptune.models.prefix_encoder import PrefixEncoder
from ptune.quantization.backends.fallback import choose_backend
from ptune.quantization.frozen_linear import QuantizedLinear

VOCABULARY = 6000
CONFIGS = {
    1: {
        "vocab_size": VOCABULARY,
        "hidden_size": 192,
        "inner_hidden_size": 768,
        "num_layers": 3,
        "num_attention_heads": 4,
        "gmask_token_id": VOCABULARY - 5,
        "mask_token_id": VOCABULARY - 4,
        "bos_token_id": VOCABULARY - 3,
        "eos_token_id": VOCABULARY - 2,
    },
    2: {
        "padded_vocab_size": VOCABULARY,
        "hidden_size": 192,
        "ffn_hidden_size": 640,
        "num_layers": 3,
        "num_attention_heads": 4,
        "kv_channels": 48,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "add_qkv_bias": True,
        "layernorm_epsilon": 1e-5,
        "seq_length": 2048,
    },
}
FULL = Architecture.from_config(RELEASED["chatglm-6b"])
FULL_LATER = Architecture.from_config(RELEASED["chatglm2-6b"])
HALF = Storage(2)


def make_model(generation, prefix, storage):
    config = CONFIGS[generation]
    torch.set_default_dtype(torch.bfloat16 if storage.itemsize == 2 else torch.float32)
    try:
        if generation == 1:
            model = ChatGLMForConditionalGeneration(ChatGLMConfig(**config))
        else:
            model = ChatGLM2ForConditionalGeneration(ChatGLM2Config(**config))
    finally:
        torch.set_default_dtype(torch.float32)
    model.tie_weights()
    model.requires_grad_(False)
    if storage.quantization:
        quantize(model.base_model.layers, int(storage.quantization))
    decoder = model.base_model
    if prefix is not None:
        decoder.prefix_encoder = PrefixEncoder(
            decoder.prefix_shape, prefix.pre_seq_len, prefix.prefix_projection, prefix.dropout
        )
    return model


def quantize(layers, bits):
    backend = choose_backend("torch", torch.device("cpu"))
    for parent in list(layers.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, torch.nn.Linear):
                new = QuantizedLinear(
                    layer.in_features, layer.out_features, bits, layer.bias is not None, backend
                )
                new.pack(layer.weight.detach())
                new.bias = layer.bias
                setattr(parent, name, new)


def stored(tensors):
    """Bytes of the storages behind tensors, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def peak(run):
    """The peak of bytes that the CPU's allocator gives out during `run`, beyond those before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    assert changes, "the profiler shows no memory"
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def measure_training(generation, storage, training):
    """Bytes of everything that stays, and of what one step takes beyond it."""
    return measure_step(make_model(generation, training.trained, storage), generation, training)


def measure_step(model, generation, training):
    model.train()
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    shape = training.micro_batch, training.source_length + training.target_length
    ids = torch.randint(10, VOCABULARY - 10, shape)
    if generation == 1:
        ids[:, training.source_length - 2] = CONFIGS[1]["gmask_token_id"]
        ids[:, training.source_length - 1] = CONFIGS[1]["bos_token_id"]
    labels = ids.clone()
    labels[:, : training.source_length] = -100

    def step():
        for _ in range(2 if training.accumulates else 1):
            model(
                input_ids=ids,
                labels=labels,
                use_cache=False,
                label_logits_only=True,
                num_items_in_batch=labels.numel(),
            ).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return stored([*model.parameters(), *model.buffers(), *moments]), peak(step)


def measure_inference(generation, storage, inference):
    model = make_model(generation, inference.trained, storage).eval()
    ids = torch.randint(10, VOCABULARY - 10, (inference.batch_size, inference.prompt_length))
    if generation == 1:
        ids[:, -2:] = torch.tensor([CONFIGS[1]["gmask_token_id"], CONFIGS[1]["bos_token_id"]])
    model.generation_config.eos_token_id = []
    sampling = Sampling(inference.new_tokens)

    def generate():
        for _ in generate_all(model, ids.tolist(), inference.batch_size, sampling):
            pass

    return stored([*model.parameters(), *model.buffers()]), peak(generate)


def assert_close(memory, fixed, measured, slack=0.1):
    """The total, and all but the weights, which would hide an error in the rest."""
    assert memory.total == pytest.approx(fixed + measured, rel=0.05)
    assert memory.total - fixed == pytest.approx(measured, rel=slack)


class TestTraining:
    @pytest.mark.parametrize("checkpointing", [False, True])
    @pytest.mark.parametrize("micro_batch, itemsize", [(1, 4), (8, 2), (8, 4)])
    @pytest.mark.parametrize("generation", [1, 2])
    def test_of_every_kind(self, generation, itemsize, micro_batch, checkpointing):
        storage = Storage(itemsize, device_type="cpu")
        training = Training(micro_batch, 40, 24, Prefix(48), checkpointing)
        a = Architecture.from_config(CONFIGS[generation])
        measured = measure_training(generation, storage, training)
        assert_close(training_bytes(a, storage, training), *measured)

    @pytest.mark.parametrize("generation", [1, 2])
    @pytest.mark.parametrize(
        "training",
        [
            Training(2, 24, 24, Prefix(32, prefix_projection=True)),
            Training(8, 8, 8, Prefix(128)),  # more prefix than text: its gradient is the peak
            Training(8, 8, 8, Prefix(128), gradient_checkpointing=True),
            Training(4, 24, 24, Prefix(32), accumulates=False),
            Training(4, 24, 24, Prefix(32, dropout=0.0)),
            Training(1, 200, 20, Prefix(16)),
        ],
        ids=repr,
    )
    def test_of_unusual_sizes(self, generation, training):
        storage = Storage(4, device_type="cpu")
        a = Architecture.from_config(CONFIGS[generation])
        measured = measure_training(generation, storage, training)
        assert_close(training_bytes(a, storage, training), *measured)

    @pytest.mark.parametrize("generation", [1, 2])
    @pytest.mark.parametrize("bits", ["4", "8"])
    def test_of_quantized_weights(self, generation, bits):
        storage = Storage(4, bits, "cpu")
        training = Training(4, 40, 24, Prefix(32), gradient_checkpointing=True)
        a = Architecture.from_config(CONFIGS[generation])
        measured = measure_training(generation, storage, training)
        assert_close(training_bytes(a, storage, training), *measured, slack=0.1)


class TestLora:
    """Adapters with gradient and moments are exact; what layers save is the prefix's and more."""

    @pytest.mark.parametrize("generation", [1, 2])
    @pytest.mark.parametrize("itemsize", [4, 2])
    @pytest.mark.parametrize(("checkpointing", "bits"), [(False, None), (True, None), (False, 8)])
    def test_of_a_step(self, peft, generation, itemsize, checkpointing, bits):
        storage = Storage(itemsize, str(bits) if bits else None, "cpu")
        model = make_model(generation, None, storage)
        lora = lora_sizes(model, 8, "all-linear")
        attach_lora(model, LoraForm(8, 16, find_targets(model, "all-linear")))
        architecture = Architecture.from_config(CONFIGS[generation])
        assert sum(lora.matrices(architecture)) == sum(
            p.numel() for p in model.parameters() if p.requires_grad
        )
        training = Training(4, 40, 24, lora, checkpointing)
        fixed, measured = measure_step(model, generation, training)
        memory = training_bytes(architecture, storage, training)
        print(
            "LORA",
            generation,
            itemsize,
            checkpointing,
            bits,
            memory.total,
            fixed + measured,
            (memory.total - fixed) / measured,
        )
        assert memory.total == pytest.approx(fixed + measured, rel=0.1)


class TestInference:
    @pytest.mark.parametrize("generation", [1, 2])
    @pytest.mark.parametrize(
        "inference",
        [
            Inference(1, 64, 8, Prefix(32)),
            Inference(8, 128, 8, Prefix(16)),
            Inference(8, 8, 24, Prefix(128)),
            Inference(16, 8, 150, Prefix(32)),  # the cache grows three times
        ],
        ids=repr,
    )
    def test_of_batches(self, generation, inference):
        # In float32: for half precision the CPU's matrix product copies the head for each row.
        storage = Storage(4, device_type="cpu")
        a = Architecture.from_config(CONFIGS[generation])
        measured = measure_inference(generation, storage, inference)
        assert_close(inference_bytes(a, storage, inference), *measured, slack=0.1)


class TestParts:
    @pytest.mark.parametrize("generation", [1, 2])
    @pytest.mark.parametrize("quantization", [None, "4", "8"])
    def test_weights_are_those_of_the_model(self, generation, quantization):
        storage = Storage(4, quantization, "cpu")
        model = make_model(generation, Prefix(8), storage)
        parameters = [t for name, t in model.named_parameters() if "prefix_encoder" not in name]
        a = Architecture.from_config(CONFIGS[generation])
        assert weight_bytes(a, storage) == stored(parameters)
        if quantization is None:
            assert a.parameters == sum(t.numel() for t in {id(t): t for t in parameters}.values())

    @pytest.mark.parametrize("projection", [False, True])
    @pytest.mark.parametrize("generation", [1, 2])
    def test_prefix_is_that_of_the_model(self, generation, projection):
        prefix = Prefix(8, projection)
        encoder = make_model(generation, prefix, Storage(4)).base_model.prefix_encoder
        a = Architecture.from_config(CONFIGS[generation])
        assert sum(prefix.matrices(a)) == sum(p.numel() for p in encoder.parameters())

    def test_of_released_models(self):
        # What the original's documentation says: 13 GB in half precision, 8 and 6 with text.
        assert FULL.parameters == 6_173_286_400
        assert FULL_LATER.parameters == 6_243_584_000
        sizes = [weight_bytes(FULL, Storage(2, bits)) / 10**9 for bits in (None, "8", "4", "nf4")]
        assert sizes == pytest.approx([12.35, 6.71, 3.89, 4.24], abs=0.01)
        embedded = Architecture.from_config(RELEASED["chatglm-6b-int4-qe"])
        assert weight_bytes(embedded, Storage(2, "4")) / 10**9 == pytest.approx(3.09, abs=0.01)

    def test_of_a_training_with_full_weights(self):
        memory = training_bytes(FULL, HALF, Training())
        assert memory.total == sum(dataclasses.astuple(memory))
        assert memory.weights == weight_bytes(FULL, HALF)
        assert memory.prefix == 16 * 128 * 2 * 28 * 4096
        assert memory.logits == 0  # the peak is elsewhere
        # The original has 13.8 GB in use on a card of 16.
        assert 13 * 10**9 < memory.total < 13.8 * 10**9

    def test_logits_are_those_of_a_few_tokens(self):
        wide = dataclasses.replace(FULL, vocab_size=10**6)
        scores = (2 + 4) * 10**6  # of a token, in half precision and in float32
        for rows, tokens in ((1, 64), (16, 1024), (32, 1024)):
            step = Training(rows, 4, 64, Prefix(1), gradient_checkpointing=True)
            assert training_bytes(wide, HALF, step).logits == tokens * scores


class TestMicroBatch:
    def test_largest_that_fits(self):
        tried = []

        def fits(memory):
            tried.append(memory.total)
            return memory.total <= 15 * 10**9

        assert largest_micro_batch(FULL, HALF, Training(), 16, fits) == 4
        assert tried == [
            training_bytes(FULL, HALF, Training(count, accumulates=count < 16)).total
            for count in (16, 8, 4)
        ]

    def test_of_a_huge_batch_divisors_alone_are_tried(self):
        tried = []
        assert largest_micro_batch(FULL, HALF, Training(), 10**12, tried.append) == 0
        assert len(tried) == 13 * 13  # divisors of 2^12 5^12

    def test_none_fits(self):
        assert largest_micro_batch(FULL, HALF, Training(), 16, lambda memory: False) == 0


class TestSavings:
    def test_are_differences_in_order(self):
        step = Training(4)
        found = savings(FULL, HALF, step)
        assert [option for option, _ in found] == [
            "--quantization-bit 8",
            "--quantization-bit 4",
            "--gradient-checkpointing",
            "--max-source-length 32 --max-target-length 32",
        ]
        now = training_bytes(FULL, HALF, step).total
        sizes = dict(found)
        eight = training_bytes(FULL, Storage(2, "8"), step).total
        assert sizes["--quantization-bit 8"] == now - eight
        again = dataclasses.replace(step, gradient_checkpointing=True)
        saved = now - training_bytes(FULL, HALF, again).total
        assert sizes["--gradient-checkpointing"] == saved

    @pytest.mark.parametrize(
        "kept, left", [("8", ["--quantization-bit 4"]), ("4", []), ("nf4", [])]
    )
    def test_what_is_on_is_not_offered(self, kept, left):
        step = Training(4, gradient_checkpointing=True)
        found = [option for option, _ in savings(FULL, Storage(2, kept), step)]
        assert found == [*left, "--max-source-length 32 --max-target-length 32"]


class TestHost:
    def test_a_card_keeps_the_model_out_of_the_cpu(self):
        assert host_bytes(FULL, HALF) == host_bytes(FULL, Storage(2, "4")) < 2 * 10**9

    def test_on_the_cpu_the_model_stays(self):
        on_cpu = Storage(4, "4", "cpu")
        beyond = host_bytes(FULL, on_cpu) - weight_bytes(FULL, on_cpu)
        assert 0 < beyond < 10**9

    def test_total_is_the_sum(self):
        assert Memory(1, 2, 4, 8, 16, 32).total == 63


@pytest.mark.parametrize("accumulates", [True, False])
def test_a_projected_prefix_peaks_with_its_gradient(accumulates):
    """In the optimizer's step values, two moments and a gradient are there, each once."""
    prefix = Prefix(128, prefix_projection=True)
    step = Training(1, 4, 4, prefix, accumulates=accumulates)
    numbers = sum(prefix.matrices(FULL))
    memory = training_bytes(FULL, HALF, step)
    assert memory.prefix == 4 * 4 * numbers
    assert memory.total > memory.weights + memory.prefix
