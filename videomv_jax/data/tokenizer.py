"""Prompts to token ids: any transformers tokenizer, and training a small one.

Sequences are padded with id 0 as CLIP's are. transformers takes a while to import,
so the functions that need it import it.
"""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from videomv_jax.types import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PADDING, START, END = "<pad>", "<start>", "<end>"
LENGTH = 48
"""Tokens a text encoder of the tiny preset reads."""


def train_tokenizer(
    captions: Iterable[str], vocabulary: int = 1024
) -> "PreTrainedTokenizerFast":
    """Train a lower-casing byte-pair tokenizer; the same captions give the same one.

    All 256 bytes are in the vocabulary, so any prompt can be encoded.

    Args:
        captions: texts to learn from.
        vocabulary: most entries it may have, of which 3 are special and 256 bytes.

    Raises:
        InputError: `vocabulary` cannot hold the bytes.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    special = [PADDING, START, END]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(special) + len(alphabet)
    if vocabulary < least:
        raise InputError(f"vocabulary: got {vocabulary}, want at least {least}")
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(word, tokenizer.token_to_id(word)) for word in (START, END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        bos_token=START,
        eos_token=END,
        model_max_length=LENGTH,
    )


def load_tokenizer(directory: str | os.PathLike[str]) -> "PreTrainedTokenizerBase":
    """Read a tokenizer's folder as transformers writes it; nothing is downloaded.

    Raises:
        InputError: the folder is missing or holds no tokenizer.
    """
    from transformers import AutoTokenizer

    if not os.path.isdir(directory):
        raise InputError(f"tokenizer: {directory} is not a folder")
    try:
        return AutoTokenizer.from_pretrained(
            os.fspath(directory), local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"tokenizer: cannot read {directory}: {error}") from error


def encode(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], length: int
) -> tuple[Int[np.ndarray, "b l"], list[str]]:
    """Token ids with start and end, cut or padded with 0 to `length`.

    Args:
        tokenizer: from `load_tokenizer` or `train_tokenizer`.
        prompts: texts.
        length: tokens per text, start and end included.

    Returns:
        int32 ids, and per prompt the text that did not fit: "" when all of it did.
    """
    ids = np.zeros((len(prompts), length), np.int32)
    cut = []
    for row, prompt in enumerate(prompts):
        # Not verbose: whoever calls decides how to say that a prompt is too long.
        found = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
        tokens, spans = found["input_ids"], found["offset_mapping"]
        rest = ""
        if len(tokens) > length:
            tokens = [*tokens[: length - 1], tokenizer.eos_token_id]
            rest = prompt[spans[length - 1][0] :].strip()
        ids[row, : len(tokens)] = tokens
        cut.append(rest)
    return ids, cut
