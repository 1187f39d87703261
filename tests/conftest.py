"""What several rooms test with: tiny tokenizers of the kinds that matter, trained here, so that nothing is fetched."""

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before anything imports transformers, which reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are fastest on one thread, most of all on a busy machine

settings.register_profile("erckit", deadline=None)  # how long an example takes says something of the machine only
settings.load_profile("erckit")

# Shortened from the published templates; what matters is kept: a system turn nobody asked for, a date, trimming.
CHAT_TEMPLATES = {
    "qwen2": """{% for m in messages %}{% if loop.first %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "llama": """{{ bos_token }}{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' }}\
{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}<|eot_id|>{% for m in messages %}\
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    "phi3": """{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "gemma": """{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else \
m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}""",
    "mistral": """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}\
{{ '[INST] ' + m['content'] + '[/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}""",
}
SPECIAL_TOKENS = {
    "qwen2": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": ["<|im_start|>"]},
    "llama": {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|finetune_right_pad_id|>",
        "extra_special_tokens": ["<|start_header_id|>", "<|end_header_id|>"],
    },
    "phi3": {
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "pad_token": "<|placeholder1|>",
        "extra_special_tokens": ["</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    },
    "gemma": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "extra_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
    },
    "mistral": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_special_tokens": ["[INST]", "[/INST]"],
    },
}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the public corpora; tests that want it are skipped where it is not named."""
    folder = os.environ.get("ERCKIT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ERCKIT_DATA names no folder with the public corpora")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[[str], Any]:
    """A function from a kind to a tokenizer of some 600 tokens with its chat template.

    "qwen2" is byte-level BPE without a first token, "llama" is byte-level BPE with one, as Llama 3. "phi3", "mistral"
    and "gemma" write blanks as "▁" and fall back to bytes, as SentencePiece does: "phi3" puts one before a text,
    "mistral" after every control token too, "gemma" nowhere. "embedded" is the WordPiece tokenizer of the embedded
    model, whole.
    """
    return cache(_make_tokenizer)


def _make_tokenizer(kind: str) -> Any:
    from erckit.retrieval.encoder import embedded_model_path
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if kind == "embedded":
        return AutoTokenizer.from_pretrained(embedded_model_path())
    trained, template, special = _train_tokenizer(kind), CHAT_TEMPLATES[kind], SPECIAL_TOKENS[kind]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, chat_template=template, **special)
    if kind == "qwen2":
        tokenizer.add_tokens(["<think>"])  # as in Qwen3: it steers the model, and yet it is not called special
    return tokenizer


def _train_tokenizer(kind: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = [token for value in SPECIAL_TOKENS[kind].values() for token in ([value] if value[0] == "<" else value)]
    if kind in ("phi3", "gemma", "mistral"):
        pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never" if kind == "gemma" else "first")
        spaced = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        spaced += [] if kind == "gemma" else [decoders.Strip(" ", 1, 0)]
        decoder, alphabet, spare = decoders.Sequence(spaced), [], [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        decoder, alphabet, spare = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet(), []
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special + spare, initial_alphabet=alphabet, show_progress=False
    )
    sample = (files("erckit.data") / "sample" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    learner.train_from_iterator(sample[:20], trainer)
    # Built once more, because what a trainer takes as spare tokens becomes control tokens of its tokenizer.
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(learned["vocab"], merges, byte_fallback=bool(spare)))
    tokenizer.decoder = decoder
    if kind in ("gemma", "mistral"):  # as these two do it: the whole text is one word, with blanks written otherwise
        blanks = [normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁")] * (kind == "mistral") + blanks)
    else:
        tokenizer.pre_tokenizer = pre_tokenizer
    if bos := SPECIAL_TOKENS[kind].get("bos_token"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer, tmp_path_factory) -> Callable[[str], Path]:
    """A function from a kind of `tiny_tokenizer` to the folder of a causal model of two layers with random weights."""

    @cache
    def build(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        tokenizer = tiny_tokenizer(kind)
        tokenizer.save_pretrained(folder)
        _build_model(kind, tokenizer).save_pretrained(folder)
        return folder

    return build


def _build_model(kind: str, tokenizer: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,  # large, so that answers differ from prompt to prompt
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


TINY_SETTINGS = """
name: talk
data: {{path: {corpus}}}
model: {{name: {model}, device: cpu, dtype: float32}}
prompts: {{template: brief, window: 3, biography_tokens: 24, facts: 1, fact_tokens: 32}}
train: {{epochs: 1, batch_size: 8, lora_rank: 4, learning_rate: 1.0e-2}}
evaluate: {{resamples: 50}}
report: {{conversations: 2, prompts: 1}}
"""


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """The folder of a cut of the sample corpus: 12/4/4 dialogues of six utterances at most, all labels in train."""
    folder = tmp_path_factory.mktemp("corpora") / "cut"
    folder.mkdir()
    sample = files("erckit.data") / "sample"
    (folder / "labels.json").write_text((sample / "labels.json").read_text(encoding="utf-8"), encoding="utf-8")
    for split, count in (("train", 12), ("dev", 4), ("test", 4)):
        lines = (sample / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        dialogues = [json.loads(line) for line in lines]
        for dialogue in dialogues:
            dialogue["utterances"] = dialogue["utterances"][:6]
            if split == "test":  # ids of the user's own, which tell utterances of one dialogue apart, no more
                dialogue["utterances"] = [{"id": str(turn), **u} for turn, u in enumerate(dialogue["utterances"])]
        text = "".join(json.dumps(dialogue) + "\n" for dialogue in dialogues)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_corpus, tiny_model, tmp_path_factory) -> Path:
    """A configuration file of small sizes, "talk", for the cut corpus and the tiny model of the kind "qwen2"."""
    path = tmp_path_factory.mktemp("configs") / "talk.yaml"
    path.write_text(TINY_SETTINGS.format(corpus=tiny_corpus, model=tiny_model("qwen2")), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def prepared(tiny_config, tmp_path_factory) -> Any:
    """A run of the tiny configuration that is made up to what training reads; tests work on copies of it."""
    from erckit.pipeline.config import load_config
    from erckit.pipeline.run import Run, run_stages

    run = Run(tmp_path_factory.mktemp("runs") / "talk", seed=1)
    run_stages(load_config(str(tiny_config)), run, last="baselines")
    return run


@pytest.fixture(scope="session")
def begin(prepared, tiny_config, tmp_path_factory) -> Callable[..., Any]:
    """A function from overrides of the tiny configuration to it and to a fresh copy of the prepared run."""
    from erckit.pipeline.config import load_config
    from erckit.pipeline.run import Run

    def make(*overrides: str) -> Any:
        config = load_config(str(tiny_config), overrides)
        run = Run(tmp_path_factory.mktemp("copies") / "talk", seed=config.seed)
        shutil.copytree(prepared.folder, run.folder)
        return config, run

    return make


SMALL = ("train.batch_size=36",)  # two optimiser steps


@pytest.fixture(scope="session")
def finished(prepared, tiny_config, tmp_path_factory) -> Any:
    """A run of the tiny configuration that is made up to its report, and its configuration; tests work on copies."""
    from types import SimpleNamespace

    from erckit.pipeline.config import load_config
    from erckit.pipeline.run import Run, run_stages

    run = Run(tmp_path_factory.mktemp("finished") / "talk", seed=1)
    shutil.copytree(prepared.folder, run.folder)
    config = load_config(str(tiny_config), SMALL)
    run_stages(config, run)
    options = [str(tiny_config), *(part for setting in SMALL for part in ("--set", setting))]
    return SimpleNamespace(config=config, run=run, folder=run.folder, options=options)


@pytest.fixture
def small_files() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which no file grows beyond so many bytes: a limit of the system, which C++ and Rust meet too."""

    @contextmanager
    def limit_size(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit_size


@pytest.fixture(scope="session")
def known_vectors() -> dict[str, Any]:
    """The vectors of all texts that `remembering_encoder` has seen."""
    return {}


@pytest.fixture(scope="module")
def remembering_encoder(known_vectors) -> Iterator[None]:
    """Makes the embedded encoder read every text once a session, so that the sample corpus costs seconds once."""
    import numpy as np
    from erckit.retrieval.encoder import SentenceEncoder

    encode = SentenceEncoder.encode

    def remember(self: SentenceEncoder, texts: Sequence[str]) -> np.ndarray:
        if new := [text for text in dict.fromkeys(texts) if text not in known_vectors]:
            known_vectors.update(zip(new, encode(self, new), strict=True))
        return np.array([known_vectors[text] for text in texts])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SentenceEncoder, "encode", remember)
        yield
