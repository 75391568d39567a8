"""The schema is the annotations: what they allow comes back the same, anything else is refused by the field's name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash import messages as m
from ml_dash import wire
from ml_dash.errors import Code, MLDashError, ProtocolError
from ml_dash.schema import MAX_INT, Within

KINDS = {**m.REQUESTS, **m.REPLIES}
every_message = pytest.mark.parametrize("schema", KINDS.values(), ids=lambda schema: schema.__name__)


# ---- the annotations, read a second time


def hints(schema: Any) -> dict[str, Any]:
    """The annotations of its fields."""
    found = get_type_hints(schema, include_extras=True)
    return {field.name: found[field.name] for field in fields(schema)}


def required(schema: Any) -> list[str]:
    return [field.name for field in fields(schema) if field.default is MISSING]


def taken_apart(annotation: Any) -> tuple[Any, Any, bool]:
    """The bare type, its largest length (of a number: its range, where it has one of its own), and whether it may be
    None."""
    options = get_args(annotation)
    if NoneType in options:
        bare, size, _ = taken_apart(next(option for option in options if option is not NoneType))
        return bare, size, True
    if get_origin(annotation) is Annotated:
        bound = options[1]
        return options[0], bound if isinstance(bound, Within) else bound.size, False
    return annotation, None, False


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values that fit an annotation."""
    bare, size, optional = taken_apart(annotation)
    least, most = size if bare is int and size else (0, MAX_INT)
    few = 3 if bare is int else min(3, size or 3)
    if is_dataclass(bare):
        fitting = st.fixed_dictionaries(
            {name: values(hint) for name, hint in hints(bare).items() if name in required(bare)},
            optional={name: values(hint) for name, hint in hints(bare).items() if name not in required(bare)},
        ).map(lambda given: bare(**given))
    elif get_origin(bare) is tuple:
        fitting = st.lists(values(get_args(bare)[0]), max_size=few).map(tuple)
    else:
        fitting = {
            int: st.integers(least, most),
            bool: st.booleans(),
            str: st.text(max_size=10),
            bytes: st.binary(max_size=10),
        }[bare]
    return st.none() | fitting if optional else fitting


def sample(annotation: Any) -> Any:
    """A plain value that fits, with every optional field and an item in every array."""
    bare, _, _ = taken_apart(annotation)
    if is_dataclass(bare):
        return {name: sample(hint) for name, hint in hints(bare).items()}
    if get_origin(bare) is tuple:
        return [sample(get_args(bare)[0])]
    return {int: 1, bool: True, str: "text", bytes: b"bytes"}[bare]


def places(annotation: Any, *steps: str | int) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Where every value within an annotation stands, and its own annotation."""
    bare, _, _ = taken_apart(annotation)
    if steps:
        yield steps, annotation
    if is_dataclass(bare):
        for name, hint in hints(bare).items():
            yield from places(hint, *steps, name)
    elif get_origin(bare) is tuple:
        yield from places(get_args(bare)[0], *steps, 0)


def wrong(annotation: Any) -> Iterator[tuple[Any, str]]:
    """Values that do not fit, and what is said of each."""
    bare, size, optional = taken_apart(annotation)
    if not optional:
        yield None, "is NoneType, not "
    if is_dataclass(bare):
        whole = sample(bare)
        yield [], "is list, not a map"
        yield "text", "is str, not a map"
        yield {**whole, "more": 1, "most": 2}, "has fields that are not known, such as 'more'"
        for name in required(bare):
            yield {key: value for key, value in whole.items() if key != name}, f"lacks ['{name}']"
    elif get_origin(bare) is tuple:
        yield {}, "is dict, not an array"
        yield "a", "is str, not an array"
        yield [sample(get_args(bare)[0])] * (size + 1), f"has a length of {size + 1}, at most {size}"
    elif bare is int:
        yield True, "is bool, not int"
        yield 1.0, "is float, not int"
        yield "1", "is str, not int"
        least, most, allowed = (*size, f"{size.least} to {size.most}") if size else (0, MAX_INT, "0 to 2**63 - 1")
        yield least - 1, f"is {least - 1}, not in {allowed}"
        yield most + 1, f"is {most + 1}, not in {allowed}"
    elif bare is bool:
        yield 1, "is int, not bool"
        yield "", "is str, not bool"
    elif bare is str:
        yield b"text", "is bytes, not str"
        yield [], "is list, not str"
        yield "é" * (size + 1), f"has a length of {size + 1}, at most {size}"
    else:
        assert bare is bytes
        yield "text", "is str, not bytes"
        yield bytes(size + 1), f"has a length of {size + 1}, at most {size}"


def largest(annotation: Any) -> Any:
    """The longest plain value of one-byte characters that fits."""
    bare, size, _ = taken_apart(annotation)
    if is_dataclass(bare):
        return {name: largest(hint) for name, hint in hints(bare).items()}
    if get_origin(bare) is tuple:
        return [largest(get_args(bare)[0])] * size
    if bare is int:
        return size.most if size else MAX_INT
    return {bool: True, str: "x" * (size or 0), bytes: bytes(size or 0)}[bare]


def replaced(whole: Any, steps: tuple[str | int, ...], value: Any) -> Any:
    whole = copy.deepcopy(whole)
    inner = whole
    for step in steps[:-1]:
        inner = inner[step]
    inner[steps[-1]] = value
    return whole


def frame(schema: type[m.Message], plain: dict[str, Any], descriptors: int | None = None) -> wire.Frame:
    count = schema.descriptors.start if descriptors is None else descriptors
    return wire.Frame(schema.kind, plain, tuple(range(count)))


def refused(schema: type[m.Message], plain: dict[str, Any], descriptors: int | None = None) -> str:
    with pytest.raises(ProtocolError) as caught:
        m.decode(frame(schema, plain, descriptors), KINDS)
    assert caught.value.code is Code.PROTOCOL
    return caught.value.message


# ---- round trip


@every_message
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_a_message_comes_back_the_same(schema: type[m.Message], data: st.DataObject):
    message = data.draw(values(schema))
    count = data.draw(st.sampled_from(schema.descriptors))
    decoder = wire.Decoder(m.REQUEST_LIMITS | m.REPLY_LIMITS)
    (arrived,) = decoder.feed(m.encode(message, count), range(count))
    assert arrived.kind == schema.kind
    assert len(arrived.descriptors) == count
    assert m.decode(arrived, KINDS) == message


@every_message
def test_optional_fields_may_be_absent(schema: type[m.Message]):
    whole = sample(schema)
    least = {name: whole[name] for name in required(schema)}
    message = m.decode(frame(schema, least), KINDS)
    for field in fields(schema):
        if field.default is not MISSING:
            assert getattr(message, field.name) == field.default


def test_optional_fields_within_a_field_may_be_absent():
    place = {"namespace": "a", "project": "b", "experiment": "c"}
    message = m.decode(frame(m.OpenExperiment, {"request": 1, "place": place}), m.REQUESTS)
    assert message == m.OpenExperiment(request=1, place=m.Place(namespace="a", project="b", experiment="c", prefix=""))


# ---- refusals


@every_message
def test_every_value_that_does_not_fit_is_refused_by_name(schema: type[m.Message]):
    whole = sample(schema)
    for steps, annotation in places(schema):
        name = ".".join([schema.__name__, *(step for step in steps if isinstance(step, str))])
        for value, complaint in wrong(annotation):
            assert f"{name} {complaint}" in refused(schema, replaced(whole, steps, value))


@every_message
def test_a_field_too_many_or_too_few(schema: type[m.Message]):
    for value, complaint in wrong(schema):
        if isinstance(value, dict):
            assert refused(schema, value) == f"{schema.__name__} {complaint}"


def test_a_nested_error_names_the_path():
    plain = sample(m.Accepted)
    plain["record"]["size_bytes"] = -5
    assert refused(m.Accepted, plain) == "Accepted.record.size_bytes is -5, not in 0 to 2**63 - 1"
    plain = sample(m.Upload)
    plain["file"]["place"]["prefix"] = 7
    assert refused(m.Upload, plain) == "Upload.file.place.prefix is int, not str"
    plain = sample(m.Page)
    plain["records"].append({})
    assert refused(m.Page, plain).startswith("Page.records lacks ['ack', 'content_type', 'created_ms']")


def test_a_complaint_is_short_however_long_the_field():
    plain = {**sample(m.Status), "x" * 60_000: 1}
    assert refused(m.Status, plain) == f"Status has fields that are not known, such as '{'x' * 64}'"


def test_the_bounds_themselves_are_taken():
    plain = {"request": MAX_INT, "ids": [0] * 1000}
    assert m.decode(frame(m.Get, plain), m.REQUESTS) == m.Get(request=2**63 - 1, ids=(0,) * 1000)


@every_message
def test_the_number_of_descriptors_is_part_of_the_schema(schema: type[m.Message]):
    for count in range(4):
        if count in schema.descriptors:
            assert isinstance(m.decode(frame(schema, sample(schema), count), KINDS), schema)
        else:
            assert refused(schema, sample(schema), count) == f"{schema.__name__} came with {count} descriptors"


def test_which_messages_carry_descriptors():
    carrying = {schema.__name__: schema.descriptors for schema in KINDS.values() if schema.descriptors != range(1)}
    assert carrying == {
        "Upload": range(1, 2),
        "Fetch": range(1, 2),
        "PutMany": range(17),
        "SlotGranted": range(2),
        "Branched": range(1, 2),
    }


# ---- the tables


def test_requests_and_replies_have_numbers_of_their_own():
    assert not m.REQUESTS.keys() & m.REPLIES.keys()
    made = {schema for schema in vars(m).values() if isinstance(schema, type) and issubclass(schema, m.Message)}
    assert made - {m.Message} == set(KINDS.values())
    assert len(made) - 1 == len(KINDS)


def test_the_limits_are_the_messages_own():
    assert {kind: schema.limit for kind, schema in m.REQUESTS.items()} == m.REQUEST_LIMITS
    assert {kind: schema.limit for kind, schema in m.REPLIES.items()} == m.REPLY_LIMITS
    assert m.REQUEST_LIMITS[m.Status.kind] == 64 * 1024


@pytest.mark.parametrize(
    "schema",
    [one for one in m.REQUESTS.values() if one not in (m.PutMany, m.LogRows, m.BringRows)],
    ids=lambda schema: schema.__name__,
)
def test_a_request_of_the_longest_fields_fits_its_limit(schema: type[m.Message]):
    plain = largest(schema)
    (arrived,) = wire.Decoder(m.REQUEST_LIMITS).feed(wire.encode(schema.kind, plain))
    assert arrived.fields == plain


def test_a_full_page_fits_the_wire():
    record = sample(m.Record) | {"metadata": "x" * 1000, "tags": ["a", "b", "c"]}
    plain = {"request": 1, "records": [record] * 1000}
    (arrived,) = wire.Decoder(m.REPLY_LIMITS).feed(wire.encode(m.Page.kind, plain))
    assert len(m.decode(arrived, m.REPLIES).records) == 1000


@every_message
def test_no_array_is_longer_than_the_wire_allows(schema: type[m.Message]):
    for _, annotation in places(schema):
        bare, size, _ = taken_apart(annotation)
        if get_origin(bare) is tuple:
            assert size <= wire.MAX_ITEMS
        assert bare in (int, bool) or is_dataclass(bare) or size is not None, "everything with a length has a bound"


# ---- the caller's words, checked before they travel


PLACE = m.Place(namespace="alice", project="cv", experiment="resnet")
FITTING = [
    {"to": "a.pt"},
    {"to": "a" * 4096},
    {"to": "a", "description": "d" * 16 * m.KIB},
    {"to": "a", "tags": ("t" * 256,) * 128, "bindrs": ("",) * 128},
    {"to": "a", "metadata": "m" * 256 * m.KIB},
]
UNFITTING = [
    ({"to": "a" * 4097}, "to has a length of 4097, at most 4096"),
    ({"to": "a", "description": "d" * (16 * m.KIB + 1)}, "description has a length of 16385"),
    ({"to": "a", "tags": ("t" * 257,)}, "tags has a length of 257, at most 256"),
    ({"to": "a", "tags": ("",) * 129}, "tags has a length of 129, at most 128"),
    ({"to": "a", "bindrs": ("b",) * 129}, "bindrs has a length of 129, at most 128"),
    ({"to": "a", "metadata": "m" * (256 * m.KIB + 1)}, "metadata has a length of 262145, at most 262144"),
    ({"to": "a", "metadata": "数" * 200_000}, "metadata take 600001 bytes, at most 524288"),
]


@pytest.mark.parametrize("words", FITTING, ids="-".join)
def test_words_within_their_bounds_are_taken_and_fit_the_frame(words: dict[str, Any]):
    described = m.Described(place=PLACE, **words)
    m.check(described)
    put = m.Put(request=1, key=bytes(16), file=described, content=bytes(m.INLINE_BYTES), sha256=bytes(32))
    (frame,) = wire.Decoder(m.REQUEST_LIMITS).feed(m.encode(put))
    assert m.decode(frame, m.REQUESTS) == put


@pytest.mark.parametrize(("words", "said"), UNFITTING)
def test_words_past_a_bound_are_the_callers_error_by_name(words: dict[str, Any], said: str):
    with pytest.raises(MLDashError) as refused:
        m.check(m.Described(place=PLACE, **words))
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert said in refused.value.message


def test_a_field_with_its_default_does_not_travel():
    (frame,) = wire.Decoder(m.REQUEST_LIMITS).feed(m.encode(m.List(request=1, place=PLACE, page_size=500)))
    assert frame.fields == {"request": 1, "place": {"namespace": "alice", "project": "cv", "experiment": "resnet"}}
    (frame,) = wire.Decoder(m.REQUEST_LIMITS).feed(m.encode(m.List(request=1, place=PLACE, pattern="", latest=True)))
    assert frame.fields.keys() == {"request", "place", "pattern", "latest"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"readme": "r" * (256 * m.KIB + 1)}, "readme has a length of 262145, at most 262144"),
        ({"tags": ("",) * 129}, "tags has a length of 129, at most 128"),
        ({"readme": "数" * 200_000, "metadata": "数" * 100_000}, "what is said takes 9000"),
    ],
)
def test_a_request_past_a_bound_is_the_callers_error(words: dict[str, Any], said: str):
    with pytest.raises(MLDashError) as refused:
        m.checked(m.OpenExperiment(request=1, place=PLACE, **words))
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert said in refused.value.message


def test_a_request_within_its_bounds_is_returned():
    said = m.OpenExperiment(request=1, place=PLACE, readme="r" * 256 * m.KIB)
    assert m.checked(said) is said


@pytest.mark.parametrize("words", FITTING, ids="-".join)
def test_an_update_is_bounded_as_a_hand_off_is(words: dict[str, Any]):
    said = {name: word for name, word in words.items() if name in ("description", "tags", "bindrs", "metadata")}
    update = m.Update(request=1, id=1, **said)
    m.check_update(update)
    (frame,) = wire.Decoder(m.REQUEST_LIMITS).feed(m.encode(update))
    assert m.decode(frame, m.REQUESTS) == update


@pytest.mark.parametrize(("words", "said"), [each for each in UNFITTING if len(each[0]) == 2 and each[0]["to"] == "a"])
def test_an_update_past_a_bound_is_the_callers_error(words: dict[str, Any], said: str):
    with pytest.raises(MLDashError) as refused:
        m.check_update(m.Update(request=1, id=1, **{name: word for name, word in words.items() if name != "to"}))
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert said.replace("600001", "600000") in str(refused.value), "it has no name"


def test_what_an_update_leaves_out_is_told_from_what_it_empties():
    (frame,) = wire.Decoder(m.REQUEST_LIMITS).feed(m.encode(m.Update(request=1, id=1, tags=(), description="")))
    update = m.decode(frame, m.REQUESTS)
    assert update == m.Update(request=1, id=1, tags=(), description="", bindrs=None, metadata=None)
