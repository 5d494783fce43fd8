"""Compare the PyTorch files of an export with our model in fp32: features, logits, tokens, prompts, boxes."""

import ast
import base64
import io as bytes_io
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from earthgpt_jax import boxes as geometry
from earthgpt_jax.config import ModelConfig
from earthgpt_jax.inference.decode import StopCondition
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.reference import Prompts, generate
from earthgpt_jax.input import images as our_images
from earthgpt_jax.input.prompts import chat_template as chat_templates
from earthgpt_jax.input.sequences import generation_prompt, open_turn_ids
from earthgpt_jax.models import earthgpt
from earthgpt_jax.ops.resize import Method, resize
from earthgpt_jax.params import merge_module
from tests.support.exported import VARIANTS
from tests.support.rasters import raster_file

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

FILES = Path(earthgpt.__file__).parents[1] / "convert" / "hf"
ATOL = 1e-5  # largest difference measured: 4.3e-6, for values up to 6
NEW = 12
CHATS = sorted(chat_templates._ALL)
QUESTIONS = [
    "What?",
    "Where is the small ship  in the upper left of this long image?",
    "How many trucks? <s>Ünï\n### [0.12,0.34,0.56,0.78]",
    " Describe it.",
]


def _squares(config: ModelConfig, count: int, *, seed: int = 0) -> np.ndarray:
    size = config.image_size
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def _close(got, expected, what: str) -> None:
    np.testing.assert_allclose(got.detach().numpy(), expected, atol=ATOL, rtol=1e-5, err_msg=what)


# ----------------------------------------------------------------------------------------------- the model
@pytest.mark.parametrize("variant", VARIANTS)
def test_features_visual_tokens_and_logits_match(make_pair, variant):
    import torch
    import torch.nn.functional as F

    pair = make_pair(variant)
    config, squares = pair.config, _squares(pair.config, 2)
    prompt = generation_prompt(pair.tokenizer, pair.chat_template, "What?", visual_tokens=config.visual_tokens)
    tokens, slots = (np.stack([array, array]) for array in prompt)
    images = slots != -1  # the positions of the image, which our model finds by their slots and theirs by their id

    @jax.jit
    def ours(params, squares):
        model = merge_module(earthgpt.abstract(config)[0], params)
        features = model.encode(squares)
        out = model(jnp.asarray(tokens), image_slots=jnp.asarray(slots), features=features)
        return features, out.visual_tokens.reshape(len(squares), -1, config.llm.dim), out.logits

    features, visual, logits = ours({path: jnp.asarray(value) for path, value in pair.params.items()}, squares)
    model, pixels = pair.model(), torch.from_numpy(squares.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        taps, maps = model.model.encode(pixels)
        assert len(taps) == len(features.vit) and len(maps) == len(features.cnn)
        for got, expected in zip(taps, features.vit, strict=True):
            _close(got, expected, "ViT")
        for got, expected in zip(maps, features.cnn, strict=True):
            _close(got.permute(0, 2, 3, 1), expected, "ConvNeXt")
        _close(model.get_image_features(pixels).last_hidden_state, visual, "visual tokens")
        # Three padding tokens on the left, which must not affect attention or positions.
        ids = np.where(images, model.config.image_token_id, tokens)
        output = model(
            input_ids=F.pad(torch.from_numpy(ids).long(), (3, 0)),
            attention_mask=F.pad(torch.ones(tokens.shape, dtype=torch.long), (3, 0)),
            pixel_values=pixels,
        )
    assert float(np.std(logits)) > 0.1
    _close(output.logits[:, 3:], logits, "logits")


def test_the_keys_in_the_file_match_the_model_and_survive_saving(make_pair, tmp_path):
    for variant in ("adapted", "swiglu_hf"):
        pair = make_pair(variant)
        from transformers import AutoModelForImageTextToText

        model, report = AutoModelForImageTextToText.from_pretrained(
            pair.folder, trust_remote_code=True, output_loading_info=True
        )
        assert {name: report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")} == {
            "missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(),
        }  # fmt: skip
        model.save_pretrained(tmp_path / variant)
        before, after = (
            load_file(pair.folder / "model.safetensors"),
            load_file(tmp_path / variant / "model.safetensors"),
        )
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key], after[key]) for key in before)
        assert (tmp_path / variant / "modeling_earthgpt.py").read_bytes() == (
            FILES / "modeling_earthgpt.py"
        ).read_bytes()


def test_bf16_is_close_to_fp32(adapted, adapted_model):
    import torch

    inputs = adapted.processor()(images=_squares(adapted.config, 1)[0], text="What?", return_tensors="pt")
    half = adapted.model(dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        got, expected = half(**inputs).logits, adapted_model(**inputs).logits
    assert got.dtype == torch.bfloat16
    assert float((got.float() - expected).abs().max()) < 0.1 * float(expected.abs().max())
    assert half.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


def test_each_encoder_resizes_as_our_model_does(adapted, adapted_model):
    """With sizes where float32 indices would be off by one pixel; F.interpolate is correct for the ViT only."""
    import torch

    code = sys.modules[type(adapted_model).__module__]
    for source, target in ((52, 352), (48, 64), (100, 41), (30, 416)):
        x = np.random.default_rng(0).random((1, source, source, 2)).astype(np.float32)
        channels_first = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        nearest = code.resize_nearest(channels_first, target).permute(0, 2, 3, 1)
        np.testing.assert_array_equal(nearest, resize(jnp.asarray(x), target, Method.NEAREST))
        bicubic = code.resize_bicubic(channels_first, target).permute(0, 2, 3, 1)
        ours = resize(jnp.asarray(x), target, Method.BICUBIC_TORCH)
        np.testing.assert_allclose(bicubic, ours, atol=2e-5, rtol=0)


# ------------------------------------------------------------------------------------------------ generating
@pytest.fixture(scope="session")
def greedy(adapted):
    """Images and the tokens that our model generates; shaped as in the Engine, to compile once."""
    squares = _squares(adapted.config, 4)
    rows = [
        generation_prompt(adapted.tokenizer, adapted.chat_template, q, visual_tokens=adapted.config.visual_tokens)
        for q in QUESTIONS
    ]
    length = -(-max(len(tokens) for tokens, _ in rows) // 32) * 32
    prompts = Prompts(
        tokens=jnp.asarray(np.stack([np.pad(t, (0, length - len(t))) for t, _ in rows])),
        image_slots=jnp.asarray(np.stack([np.pad(s, (0, length - len(s)), constant_values=-1) for _, s in rows])),
        lengths=jnp.asarray([len(t) for t, _ in rows]),
        images=jnp.asarray(squares),
    )
    tokens = generate(
        earthgpt.abstract(adapted.config)[0],
        {path: jnp.asarray(value) for path, value in adapted.params.items()},
        prompts,
        config=adapted.config,
        max_new_tokens=NEW,
        stop=StopCondition(eos_id=2, separators=adapted.chat_template.separator_ids(adapted.tokenizer)),
    )
    return squares, np.asarray(tokens)


def _tokens(model, processor, questions: list[str], squares: np.ndarray, **kwargs) -> np.ndarray:
    inputs = processor(images=list(squares), text=questions, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=NEW, **kwargs)[:, inputs["input_ids"].shape[1] :].numpy()
    return np.pad(output, ((0, 0), (0, NEW - output.shape[1])))


def test_greedy_tokens_match_ours_alone_and_in_a_left_padded_batch(adapted, adapted_model, greedy):
    (squares, expected), processor = greedy, adapted.processor()
    assert len({tuple(row) for row in expected.tolist()}) == 4  # the sequences differ
    padded = processor(images=list(squares), text=QUESTIONS)["attention_mask"]
    assert padded[0, 0] == 0 and padded[1:, 0].any()
    np.testing.assert_array_equal(_tokens(adapted_model, processor, QUESTIONS, squares), expected)
    for i in range(4):
        alone = _tokens(adapted_model, processor, QUESTIONS[i : i + 1], squares[i : i + 1])
        np.testing.assert_array_equal(alone[0], expected[i])
    uncached = _tokens(adapted_model, processor, QUESTIONS[:2], squares[:2], use_cache=False)
    np.testing.assert_array_equal(uncached, expected[:2])
    # Other images give other tokens: the comparison above depends on the images.
    assert (_tokens(adapted_model, processor, QUESTIONS, squares[::-1]) != expected).any()


def test_answers_match_the_engine(adapted, greedy):
    squares, tokens = greedy
    engine = Engine.from_model_dir(adapted.ours.path, batch_size=4)
    expected = engine.answer(list(zip(squares, QUESTIONS, strict=True)), max_new_tokens=NEW)
    processor = adapted.processor()
    assert processor.batch_decode(tokens) == expected
    assert all(expected)
    answer, start = (adapted.tokenizer.encode(t) for t in ("Two ships.\n### Human: And", "Two ships."))
    assert processor.decode(answer) == processor.decode([*start, 0, 0]) == "Two ships."
    assert processor.decode([*start, 2, *answer]) == "Two ships."
    closed = adapted.tokenizer.encode("Two ships.\n###")
    assert processor.post_process_image_text_to_text([[*closed, 0]]) == ["Two ships."]


def _cut(row: np.ndarray, ending: list[int]) -> np.ndarray:
    """Replace the tokens after the first occurrence of `ending` by zeros."""
    ends = [i + len(ending) for i in range(NEW) if row[i : i + len(ending)].tolist() == ending]
    return np.where(np.arange(NEW) < (ends or [NEW])[0], row, 0)


def test_generation_stops_after_the_separator_and_at_eos(adapted, greedy):
    """Declare a pair of tokens that the model generates as the separator, then one of them as EOS."""
    (squares, free), processor, model = greedy, adapted.processor(), adapted.model()
    pair = free[0, 3:5].tolist()
    expected = np.stack([_cut(row, pair) for row in free])
    assert not expected[0, 5:].any() and (expected == free).all(axis=1).any()  # one sequence ends, another continues
    model.config.conversation["separator_ids"] = [[639, 638], pair]
    np.testing.assert_array_equal(_tokens(model, processor, QUESTIONS, squares), expected)
    model.config.conversation["separator_ids"] = []
    got = _tokens(model, processor, QUESTIONS, squares, eos_token_id=pair[1])
    np.testing.assert_array_equal(got, np.stack([_cut(row, pair[1:]) for row in free]))


def test_a_pipeline_gives_the_same_answer(adapted, adapted_model):
    from transformers import pipeline

    processor, square = adapted.processor(), _squares(adapted.config, 1)[0]
    ask = pipeline("image-text-to-text", model=adapted_model, processor=processor, tokenizer=processor.tokenizer)
    image = {"type": "image", "image": Image.fromarray(square)}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "What?"}]}]
    (answer,) = ask(text=messages, max_new_tokens=NEW, return_full_text=False)
    expected = processor.batch_decode(_tokens(adapted_model, processor, ["What?"], [square]))
    assert [answer["generated_text"].strip()] == expected


def test_several_images_are_placed_in_the_order_of_the_sequences(adapted, adapted_model):
    import torch

    pixels = torch.from_numpy(_squares(adapted.config, 3)).permute(0, 3, 1, 2)
    image = [adapted_model.config.image_token_id] * (adapted.config.visual_tokens + 2)
    ids = torch.tensor([[5, *image, *image, 5], [5, 5, *image, *[5] * len(image)]])
    with torch.no_grad():
        first, second, third = adapted_model.get_image_features(pixels).pooler_output
        x, text = adapted_model.model.embed(ids, pixels), adapted_model.get_input_embeddings()(torch.tensor([5]))
    marks = adapted_model.model.image_tokens
    assert torch.equal(first[0], marks.start) and torch.equal(third[-1], marks.end)
    assert torch.equal(x[0], torch.cat([text, first, second, text]))
    assert torch.equal(x[1], torch.cat([text, text, third, text.expand(len(image), -1)]))
    with pytest.raises(ValueError, match="for 2 images"):
        adapted_model.model.embed(ids, pixels[:2])


def test_prompts_without_an_image(adapted, adapted_model):
    import torch

    processor = adapted.processor()
    text = processor(text="What?", return_tensors="pt")
    chat = adapted.chat_template
    prefix, whole = (adapted.tokenizer.encode(t) for t in (chat.prefix, chat.prefix + chat.open_turn("What?")))
    assert text["input_ids"][0].tolist() == [1, *prefix, *whole[len(prefix) :]]
    assert "pixel_values" not in text
    alone = adapted_model.generate(**text, max_new_tokens=4)[0, -4:]
    square = _squares(adapted.config, 1)[0]
    mixed = processor(images=[None, square], text=["What?"] * 2, return_tensors="pt")
    together = adapted_model.generate(**mixed, max_new_tokens=4)[:, -4:]
    assert torch.equal(together[0], alone)
    seen = processor(images=square, text="What?", return_tensors="pt")
    assert torch.equal(together[1], adapted_model.generate(**seen, max_new_tokens=4)[0, -4:])
    del seen["pixel_values"]
    with pytest.raises(ValueError, match="expected pixel_values"):
        adapted_model(**seen)


# ------------------------------------------------------------------------------------------------- prompts
@pytest.mark.parametrize("chat", CHATS)
def test_ids_match_our_prompts(make_pair, chat):
    pair = make_pair("adapted", chat)
    processor, visual_tokens = pair.processor(), pair.config.visual_tokens
    rows = [generation_prompt(pair.tokenizer, pair.chat_template, q, visual_tokens=visual_tokens) for q in QUESTIONS]
    batch = processor(images=list(_squares(pair.config, 4)), text=QUESTIONS)
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    for i, (tokens, slots) in enumerate(rows):
        real = batch["attention_mask"][i].astype(bool)
        assert batch["input_ids"][i][real].tolist() == np.where(slots == -1, tokens, processor.image_token_id).tolist()
        assert real.tolist() == sorted(real.tolist())  # the padding is on the left
        assert (batch["input_ids"][i][~real] == processor.pad_id).all()
        assert processor.image_token_id not in tokens


@pytest.mark.parametrize("chat", CHATS)
def test_three_turns_with_an_image_have_the_ids_of_our_dialogue(make_pair, chat):
    pair = make_pair("adapted", chat)
    processor, square = pair.processor(), _squares(pair.config, 1)[0]
    turns = [("How many ships?", "There are two ships."), ("Where are they?", "[0.12,0.34,0.56,0.78]")]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate([*sum(turns, ())])]
    messages[0]["content"] = [{"type": "image", "image": square}, {"type": "text", "text": turns[0][0]}]
    messages.append({"role": "user", "content": [{"type": "text", "text": "And then?"}]})
    image, visual = processor.image_token, [processor.image_token_id] * (pair.config.visual_tokens + 2)
    prefix = pair.tokenizer.encode(pair.chat_template.prefix)
    last = open_turn_ids(pair.tokenizer, pair.chat_template, "And then?", history=turns)
    expected = [1, *visual, *prefix, *last]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text.startswith(f"<s>{image}{pair.chat_template.prefix} Human: How many ships?")
    batch = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert batch["input_ids"][0].tolist() == expected
    for prompt in (text.removeprefix(f"<s>{image}"), text):
        explicit = processor(images=square, text=prompt)
        assert explicit["input_ids"].tolist() == batch["input_ids"].tolist()
        np.testing.assert_array_equal(explicit["pixel_values"], batch["pixel_values"])
    # Servers tokenize the text of the template themselves and then replace the image token.
    served = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [1, *visual, *served[2:]] == expected and served[1] == processor.image_token_id
    replaced = processor(
        images=square, text=image, return_text_replacement_offsets=True, return_mm_token_type_ids=True
    )  # fmt: skip
    (change,) = replaced["text_replacement_offsets"][0]
    assert processor.tokenizer(change["replacement"], add_special_tokens=False)["input_ids"] == visual
    assert replaced["mm_token_type_ids"].sum() == len(visual)
    closed = processor.apply_chat_template([messages[:2], messages[:4]])
    assert len(closed) == 2 and all(text.startswith(dialogue) for dialogue in closed)
    with pytest.raises(ValueError, match="user first"):
        processor.apply_chat_template(messages[1:])
    with pytest.raises(ValueError, match="at most one per dialogue"):
        processor(images=[[square, square]], text="What?")


def test_messages_as_other_templates_take_them(adapted):
    processor, square = adapted.processor(), _squares(adapted.config, 1)[0]
    stream = bytes_io.BytesIO()
    Image.fromarray(square).save(stream, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    question = {"type": "text", "text": "What?"}
    expected = processor(images=square, text="What?")
    for image in (
        {"type": "image", "url": url},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image", "image": Image.fromarray(square)},
    ):
        messages = [{"role": "user", "content": [question, image]}]
        got = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
        assert got["input_ids"].tolist() == expected["input_ids"].tolist()
        np.testing.assert_array_equal(got["pixel_values"], expected["pixel_values"])
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    text = processor.apply_chat_template(system, add_generation_prompt=True)
    assert text == "<s>Be brief.\n\n### Human: What?\n### Assistant:"
    tokens = [1, *adapted.tokenizer.encode(text.removeprefix("<s>"))]
    assert processor(text=text)["input_ids"][0].tolist() == tokens
    for token in (processor.image_token, "<s>", "</s>"):
        with pytest.raises(ValueError, match="special token"):
            processor.apply_chat_template([{"role": "user", "content": f"What? {token}"}])
    # As a question, without the template, it is text like any other.
    (ids,) = processor(text=f"What is {processor.image_token}?")["input_ids"]
    assert processor.image_token_id not in ids


def test_the_tokenizer_gives_the_ids_of_the_sentencepiece_model(adapted, tmp_path):
    from transformers import AutoTokenizer

    tokenizer, ours = adapted.processor().tokenizer, adapted.tokenizer
    text = "There are <p>two ships</p>[0.12,0.34,0.56,0.78]  in\nthe Ünï image."
    assert tokenizer.is_fast
    assert tokenizer(text)["input_ids"] == [1, *ours.encode(text)]
    assert tokenizer.decode(ours.encode(text)) == ours.decode(ours.encode(text))
    assert (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (640, 1, 2, 0)
    adapted.processor().save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


# -------------------------------------------------------------------------------------------------- images
def _files() -> dict[str, bytes]:
    """Image files of the types that our reader treats differently."""
    rng = np.random.default_rng(0)

    def encoded(image: Image.Image, file_format: str, **options) -> bytes:
        stream = bytes_io.BytesIO()
        image.save(stream, file_format, **options)
        return stream.getvalue()

    color = Image.fromarray(rng.integers(0, 256, (37, 90, 3)).astype(np.uint8))
    floats = rng.normal(0, 5, (33, 20)).astype(np.float32)
    floats[3, 4] = np.nan
    rotated = Image.Exif()
    rotated[0x0112] = 6  # rotate by 90 degrees
    see_through = color.convert("RGBA")
    see_through.paste((250, 250, 250, 0), (0, 0, 20, 20))
    bordered = rng.integers(2000, 4000, (51, 64)).astype(np.uint16)
    bordered[:, :20] = 0
    filled = np.where(floats > 0, floats, -9999).astype(np.float32)
    return {
        "wide": encoded(color, "PNG"),
        "tall, rotated by EXIF": encoded(color.rotate(90, expand=True), "JPEG", exif=rotated),
        "grey": encoded(color.convert("L"), "PNG"),
        "opaque": encoded(color.convert("RGBA"), "PNG"),
        "transparent": encoded(see_through, "PNG"),
        "rotated by TIFF": encoded(color, "TIFF", exif=rotated),
        "palette": encoded(color.convert("P"), "PNG"),
        "16 bits": encoded(Image.fromarray(rng.integers(100, 4000, (51, 64)).astype(np.uint16)), "PNG"),
        "zero border": encoded(Image.fromarray(bordered), "TIFF"),
        "no data": raster_file(filled[None], nodata=-9999),
        "32 bits": raster_file((2**31 + rng.integers(0, 999, (1, 30, 30))).astype(np.uint32)),
        "float": encoded(Image.fromarray(floats), "TIFF"),
        "the right size": encoded(Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)), "PNG"),
    }


def test_square_images_are_bit_identical(adapted, tmp_path):
    processor = adapted.processor()
    files = _files()
    expected = np.stack([our_images.load_square(data, adapted.config.image_size) for data in files.values()])
    got = processor(images=list(files.values()), text=["What?"] * len(files))["pixel_values"]
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got.transpose(0, 2, 3, 1), expected)
    for data, square in zip(files.values(), expected, strict=True):
        path = tmp_path / "image"
        path.write_bytes(data)
        for image in (Image.open(path), path):
            single = processor(images=image, text="What?", return_tensors="pt")["pixel_values"]
            np.testing.assert_array_equal(single[0].permute(1, 2, 0), square)


@pytest.mark.parametrize("driver", ["GTiff", "PNG"])
def test_several_bands_of_16_bits_are_refused(adapted, driver):
    """Pillow would read the high bytes only."""
    colors = np.random.default_rng(0).integers(0, 3000, (3, 20, 30)).astype(np.uint16)
    data = raster_file(colors, driver=driver, georeferenced=False, photometric="RGB")
    with pytest.raises(ValueError, match=r"expected 8 bits or one band|cannot identify"):
        adapted.processor()(images=data, text="What?")
    square = adapted.processor()(images=our_images.decode(data), text="What?")["pixel_values"][0]
    expected = our_images.load_square(data, adapted.config.image_size)
    np.testing.assert_array_equal(square.transpose(1, 2, 0), expected)


# --------------------------------------------------------------------------------------------------- boxes
TEXTS = [
    "There are <p>two ships</p>[0.12,0.34,0.56,0.78;0.10,0.20,0.30,0.40] and <p>one bus</p>[0.5,0.5,0.9,1.0] there.",
    "<p>13 people</p>[0.1,0.1,0.5,0.12,0.48,0.4,0.08,0.38] <p>three ferries</p> [0,0,1,1] [0.2,0.2,0.3,0.3]",
    "<p>5 glasses</p>[0.1,0.1,0.2,0.2] <p>two school buses</p>[0.3,0.3,0.4,0.4] <p>Aircraft</p>[0.1,0.2,0.3,0.4]",
    "[0.5,0.5,0.5,0.9] [0.1,0.2,0.3] [1.2,0.1,1.3,0.4] [0.1,0.2,0.3,x] [] [0.1,-0.2,0.3,0.4] [0.1,0.2,0.3,0.4",
    "[0.1,0.2,0.3,0.4x] [0.1 , 0.2, 0.3,0.4] [0.1,0.2,.3,0.4] [0.1,0.2,0.3,4e-1] [0.1,0.1,0.1,0.1,0.5,0.5,0.1,0.5]",
    "[[0.1,0.2,0.3,0.4]] <p>a<b</p>[0.1,0.2,0.3,0.4] <p>zero tanks</p>[0.1,0.2,0.3,0.4;;0.2,0.3,0.4,0.5]",
    "nothing at all",
]


def _random_texts() -> list[str]:
    """Random quadrilaterals on coarse grids, where sides often cross, overlap or touch and corners coincide."""
    rng = np.random.default_rng(0)
    texts = []
    for steps in (2, 3, 10):
        corners = rng.integers(0, steps + 1, (400, 8)) / steps
        texts += ["[" + ",".join(f"{value:.2f}" for value in row) + "]" for row in corners]
    return texts


@pytest.mark.parametrize("size", [(100, 60), (33, 70), (50, 50)])
def test_boxes_match_our_parser(adapted, size):
    processor, kinds = adapted.processor(), set()
    for text in [*TEXTS, *_random_texts()]:
        expected = geometry.parse(text).boxes
        got = processor.post_process_boxes(text, size)
        assert [(box["label"], box["kind"]) for box in got] == [(b.label, b.kind.value) for b in expected], text
        for box, ours in zip(got, expected, strict=True):
            pixels = ours.pixels(geometry.Square(*size))
            assert box["polygon"].dtype == pixels.dtype
            np.testing.assert_array_equal(box["polygon"], pixels)
            kinds.add(box["kind"])
    assert kinds == {"hbb", "obb"}


# ----------------------------------------------------------------------------------------------- the files
def test_the_files_import_neither_jax_nor_our_package():
    allowed = {"torch", "transformers", "numpy", "PIL", "jinja2"}
    for file in FILES.glob("*_earthgpt.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (FILES / f"{node.module}.py").is_file()
            assert {name.split(".")[0] for name in names} <= allowed | set(sys.stdlib_module_names), file
