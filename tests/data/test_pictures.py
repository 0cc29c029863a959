"""Images are stored as files; workers crop, flip and cut them: the same draws wherever they run."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from record_writer import RecordWriter

from codecvit.__main__ import main
from codecvit.codec.errors import MediaError
from codecvit.codec.image import centre_crop, open_image
from codecvit.codec.pack import pack_image
from codecvit.data.augment import AugmentConfig, flip_sequence
from codecvit.data.pictures import crop_picture, stored_picture
from codecvit.data.pipeline import iterate_once, make_loader
from codecvit.data.record import PICTURE, Storage, encode_record
from codecvit.data.records import RecordSet
from codecvit.sequence import PatchSequence

CROP = AugmentConfig(crop_area=(0.7, 1.0), crop_aspect=(0.8, 1.25))
BOTH = AugmentConfig(crop_area=(0.7, 1.0), crop_aspect=(0.8, 1.25), flip=0.5)


def gradient(width, height):
    """Red grows to the right, green downwards: a pixel tells where it comes from."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    picture[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    return picture


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number, (width, height) in enumerate([(80, 60), (64, 64), (300, 200), (57, 90)]):
        image = Image.fromarray(gradient(width, height))
        image.save(folder / f"{number}.{'jpg' if number % 2 else 'png'}", quality=95)
    return folder


@pytest.fixture(scope="module")
def image_set(image_files, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed")
    options = ["--size", "56", "--picture-side", "100", "--workers", "0"]
    assert main(["pack", str(image_files), "--out", str(out), *options]) == 0
    return RecordSet(out / "image")


def loader(record_set, **options):
    defaults = {"batch_size": 4, "budget": 64, "seed": 3}
    return make_loader(record_set, **(defaults | options))


def take(count, record_set, **options):
    with loader(record_set, **options) as batches:
        return [next(batches) for _ in range(count)]


def stored(path, side):
    return stored_picture(path.read_bytes(), open_image(path, path), side)


def test_small_jpeg_and_png_files_are_stored_as_they_are(image_files):
    for name in ("0.png", "1.jpg"):
        path = image_files / name
        assert stored(path, 100) == path.read_bytes()


def test_large_pictures_are_scaled_down_and_others_become_jpeg(image_files, tmp_path):
    small = Image.open(io.BytesIO(stored(image_files / "2.png", 100)))
    assert (small.size, small.format) == ((150, 100), "JPEG")
    Image.fromarray(gradient(40, 30)).save(tmp_path / "x.bmp")
    kept = Image.open(io.BytesIO(stored(tmp_path / "x.bmp", 100)))
    assert (kept.size, kept.format) == ((40, 30), "JPEG")
    (tmp_path / "y.jpg").write_bytes(b"no image")
    with pytest.raises(MediaError, match=r"y\.jpg"):
        stored(tmp_path / "y.jpg", 100)


def test_without_augmentation_the_patches_are_those_of_the_file(image_set, image_files):
    """The same files at the packed size and at another one."""
    assert image_set.manifest["storage"] == PICTURE
    for size in (56, 28):
        (batch,) = take(1, image_set, image_size=size, shuffle=False)
        for row, number in enumerate(batch["index"]):
            name = image_set.keys[number]
            if name == "2.png":
                continue  # stored scaled down
            expected = pack_image(image_files / name, size, 14)
            length = batch["length"][row]
            np.testing.assert_array_equal(batch["patches"][row, :length], expected.flat())
            np.testing.assert_array_equal(batch["positions"][row, :length], expected.positions)
    (row,) = (row for row, name in enumerate(image_set.keys) if name == "0.png")
    np.testing.assert_array_equal(
        image_set[row].sequence.patches, pack_image(image_files / "0.png", 56, 14).patches
    )


def test_crops_have_the_stated_area_and_aspect():
    """Read back from the gradients at the crop's edges."""
    image = Image.fromarray(gradient(400, 400))
    rng = np.random.default_rng(0)
    areas, aspects, lefts, tops = [], [], [], []
    for _ in range(300):
        red, green = crop_picture(image, 64, CROP, rng)[..., :2].transpose(2, 0, 1).astype(float)
        width = (red[:, -1].mean() - red[:, 0].mean()) / 255 * 64 / 63
        height = (green[-1].mean() - green[0].mean()) / 255 * 64 / 63
        areas.append(width * height)
        aspects.append(width / height)
        lefts.append(red[:, 0].mean() / 255)
        tops.append(green[0].mean() / 255)
    assert 0.66 < min(areas) < 0.74 and 0.93 < max(areas) < 1.04
    assert 0.78 < min(aspects) < 0.86 and 1.17 < max(aspects) < 1.28
    assert min(lefts) < 0.02 and max(lefts) > 0.15
    assert min(tops) < 0.02 and max(tops) > 0.15
    assert abs(np.corrcoef(lefts, tops)[0, 1]) < 0.9  # not along the diagonal alone


def test_wide_and_tall_crops_are_equally_likely():
    """The logarithm of the aspect is uniform: as many crops of 1 : 4 to 1 : 1 as of 1 : 1 to 4 : 1.

    Uniform aspects would be wide four times in five.
    """
    config = AugmentConfig(crop_area=(0.05, 0.05), crop_aspect=(0.25, 4.0))
    image, rng = Image.fromarray(gradient(200, 200)), np.random.default_rng(1)
    wide = 0
    for _ in range(200):
        red, green = crop_picture(image, 8, config, rng)[..., :2].transpose(2, 0, 1).astype(float)
        wide += np.ptp(red.mean(0)) > np.ptp(green.mean(1))
    assert wide / 200 == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize(("width", "height"), [(150, 100), (100, 150), (133, 100)])
def test_photographs_are_cropped_at_random_not_shown_at_their_centre(width, height):
    """Few draws fit a picture of 3 : 2, so many have to be tried."""
    image = Image.fromarray(gradient(width, height))
    rng = np.random.default_rng(0)
    centre = centre_crop(image, 16)
    views = [crop_picture(image, 16, CROP, rng) for _ in range(100)]
    assert sum(np.array_equal(view, centre) for view in views) <= 1


def test_a_picture_that_no_crop_fits_gives_its_centre():
    image = Image.fromarray(gradient(1000, 20))
    view = crop_picture(image, 16, CROP, np.random.default_rng(0))
    assert view[..., 0].mean() == pytest.approx(127, abs=2)


def test_flipped_patches_are_those_of_the_mirrored_picture(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    sequences = []
    for name, pixels in (("a", picture), ("b", picture[:, ::-1])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        sequences.append(pack_image(tmp_path / f"{name}.png", 56, 14))
    flipped = flip_sequence(sequences[0], 4)
    np.testing.assert_array_equal(flipped.patches, sequences[1].patches)
    np.testing.assert_array_equal(flipped.positions, sequences[1].positions)


def test_flipping_a_selection_twice_gives_it_back():
    rng = np.random.default_rng(0)
    positions = np.unique(rng.integers(0, [64, 6, 5], (60, 3)), axis=0).astype(np.int32)
    sequence = PatchSequence(rng.integers(0, 256, (len(positions), 2, 2, 3), np.uint8), positions)
    flipped = flip_sequence(sequence, 5)
    assert (flipped.positions[:, :2] == np.sort(flipped.positions[:, :2], axis=0)[:, :2]).any()
    row = 7
    t, h, w = sequence.positions[row]
    (there,) = np.flatnonzero((flipped.positions == (t, h, 4 - w)).all(1))
    np.testing.assert_array_equal(flipped.patches[there], sequence.patches[row, :, ::-1])
    again = flip_sequence(flipped, 5)
    np.testing.assert_array_equal(again.patches, sequence.patches)
    np.testing.assert_array_equal(again.positions, sequence.positions)


def test_the_loader_mirrors_about_the_width_of_the_view(tmp_path, make_record):
    """Two rows of eight columns: no square, so rows and columns cannot be taken for each other."""
    with RecordWriter(tmp_path, [range(2)]) as writer:
        for number in range(2):
            record = dataclasses.replace(make_record(number, length=12), view=(8, 32))
            entry = {"key": record.key, "length": 12, "labels": {}}
            writer.write(number, encode_record(record, Storage("raw")), entry)
        record_set = writer.finish({"mode": "codec", "patch": 4, "size": 32, "budget": 14}, [])
    (batch,) = take(1, record_set, batch_size=2, augment=AugmentConfig(flip=1.0), shuffle=False)
    for row in range(2):
        sequence = record_set[row].sequence
        mirrored = sequence.positions * [1, 1, -1] + [0, 0, 7]
        for patch, place in zip(sequence.patches, mirrored, strict=True):
            (there,) = np.flatnonzero((batch["positions"][row, :12] == place).all(1))
            np.testing.assert_array_equal(batch["patches"][row, there], patch[:, ::-1].ravel())


def by_place(batches):
    """Rows of some batches, which hold the places 0, 1, ... of the stream in any order of rows."""
    return {
        (number, int(index)): batch["patches"][row].tobytes()
        for number, batch in enumerate(batches)
        for row, index in enumerate(batch["index"])
    }


def test_draws_differ_by_place_and_seed(image_set):
    one = take(6, image_set, augment=BOTH)
    views = {bytes(batch["patches"][0]) for batch in one}
    assert len(views) > 4
    other = take(6, image_set, augment=BOTH, seed=4)
    # Where no crop fits it is the centre.
    assert len(set(by_place(one).values()) & set(by_place(other).values())) < 8  # of 24


def test_draws_do_not_depend_on_processes_workers_or_a_resume(image_set):
    whole = by_place(take(4, image_set, augment=BOTH))
    later = take(2, image_set, augment=BOTH, start_index=8)
    assert by_place(later) == {(n - 2, i): v for (n, i), v in whole.items() if n >= 2}
    parts = [take(4, image_set, augment=BOTH, process_index=p, process_count=2) for p in (0, 1)]
    together = {}
    for part in parts:
        together |= by_place(part)
    assert together == whole
    assert by_place(take(4, image_set, augment=BOTH, worker_count=1)) == whole


def test_augmentation_leaves_labels_and_evaluation_alone(image_set):
    plain, changed = take(3, image_set), take(3, image_set, augment=BOTH)
    for a, b in zip(plain, changed, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        np.testing.assert_array_equal(a["labels"], b["labels"])
    (batch,) = iterate_once(image_set, 4, 16)
    assert batch["weight"].all()


def test_flips_come_at_their_rate(image_set):
    flipped = take(60, image_set, augment=AugmentConfig(flip=0.25), image_size=28, shuffle=False)
    plain = take(1, image_set, image_size=28, shuffle=False)[0]["patches"]
    share = np.mean([(b["patches"] != plain).any((1, 2)) for b in flipped])
    assert share == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_area": (0.9, 0.5)}, r"augment\.crop_area = \(0\.9, 0\.5\)"),
        ({"crop_area": (0.9, 1.5)}, r"augment\.crop_area = .* must not exceed 1"),
        ({"crop_aspect": (0.0, 1.0)}, r"augment\.crop_aspect"),
        ({"flip": 1.5}, r"augment\.flip = 1\.5 must lie in 0\.\.1"),
    ],
)
def test_wrong_augmentations_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**values)


def test_what_the_records_cannot_do_is_named(image_set, write_set, tmp_path):
    record_set = write_set(tmp_path / "set", 3)
    with pytest.raises(ValueError, match="neither cropped"):
        loader(record_set, augment=CROP)
    with pytest.raises(ValueError, match="nor shown at image_size = 28"):
        loader(record_set, image_size=28)
    with pytest.raises(ValueError, match="image_size = 30 must be a multiple of the patch 14"):
        loader(image_set, image_size=30)
    with pytest.raises(ValueError, match="budget = 64 is below the longest sequence"):
        loader(image_set, image_size=140)
