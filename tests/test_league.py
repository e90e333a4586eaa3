"""The league: what it measures, that a stopped run goes on, and the table that it writes."""

from dataclasses import replace
import os

from cam_helpers import data, garments, ground_truth, league, methods, metrics, models, standings
from cam_helpers.backend import keras
from click.testing import CliRunner
import numpy as np
import pytest

L = keras.layers
SOME = ("Grad-CAM", "saliency")  # methods that suffice here


@pytest.fixture
def fashion(fashion_mnist, monkeypatch):
    """The real Fashion-MNIST, read once, with few test images."""
    tests = {name: getattr(fashion_mnist, name)[:150] for name in ("test_images", "test_labels")}
    fewer = replace(fashion_mnist, **tests)
    monkeypatch.setattr(data, "fashion_mnist", lambda: fewer)
    return fewer


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", SOME)


@pytest.fixture
def places(monkeypatch, tmp_path):
    """A checkout and an output folder of one's own."""
    for name in ("folder", "output_folder"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(data, name, lambda folder=tmp_path / name: folder)
    monkeypatch.setattr(data, "CHECKOUT", tmp_path)
    (tmp_path / "README.md").write_text(f"before\n{standings.START}\nold\n{standings.END}\nafter\n")
    return tmp_path


@pytest.fixture
def tiny(monkeypatch):
    """Two tracks that measure nothing, and the list of what they measured."""
    measured = []

    def track(name):
        def entry(method, mean):
            def measure():
                measured.append(f"{name}: {method}")
                values = np.random.default_rng(len(method)).normal(mean, 0.1, 8)
                return {"pointing": values, "seconds": np.full(8, 0.01)}

            return measure

        return lambda count: {
            method: entry(method, mean * count)
            for method, mean in [("Grad-CAM", 1), ("Grad-CAM++", 2), ("edges", 0)]
        }

    tracks = {"marks": (8, track("marks")), "Fashion-MNIST": (8, track("Fashion-MNIST"))}
    monkeypatch.setattr(league, "TRACKS", tracks)
    return measured


def network(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((14, 14, 1))
    x = L.Conv2D(4, 3, activation="relu", name="last")(inputs)
    return keras.Model(inputs, L.Dense(5)(L.Flatten()(x)), name="network")


def pictures(count=6):
    return np.random.default_rng(0).random((count, 14, 14, 1), np.float32)


def by_method(rows, metric):
    return {row["method"]: row for row in rows if row["metric"] == metric}


# rows


def scores():
    """Scores of a metric where low is good: images differ far more than methods do."""
    base = np.random.default_rng(0).random(40)
    wave = np.where(np.arange(40) % 2, 0.005, -0.005)
    return {
        "Grad-CAM": base - 0.01,
        "saliency": base - 0.0099 + wave,
        "edges": base,
        "random pixels": base + 0.1,
        "random cells": base + 0.01 * wave - 0.01,
    }


@pytest.mark.parametrize(("metric", "sign"), [("deletion", 1), ("insertion", -1)])
def test_rows_compare_image_by_image(metric, sign):
    found = {name: {metric: sign * each} for name, each in scores().items()}
    rows = by_method(standings.rows_of("photos", found), metric)
    assert list(rows) == list(found)
    assert {name: row["beats"] for name, row in rows.items()} == {
        "Grad-CAM": "random pixels; edges",
        "saliency": "random pixels; edges",
        "edges": "random pixels",
        "random pixels": "",
        "random cells": "random pixels; edges",
    }
    assert {name: row["as_good_as_best"] for name, row in rows.items()} == {
        "Grad-CAM": "yes",
        "saliency": "yes",
        "edges": "no",
        "random pixels": "no",
        "random cells": "yes",
    }
    assert {row["better"] for row in rows.values()} == {"low" if sign == 1 else "high"}


def test_few_images_say_of_nobody_that_he_wins():
    few = {name: {"deletion": each[:19]} for name, each in scores().items()}
    for row in standings.rows_of("photos", few):
        assert row["beats"] == row["as_good_as_best"] == ""
        assert row["low"] < row["mean"] < row["high"]


def test_rows_give_mean_and_interval():
    base = np.linspace(0, 1, 201)
    (row,) = standings.rows_of("photos", {"saliency": {"deletion": base}})
    spread = 1.96 * base.std() / np.sqrt(201)
    assert row["mean"] == "0.5000"
    assert float(row["low"]) == pytest.approx(0.5 - spread, abs=0.002)
    assert float(row["high"]) == pytest.approx(0.5 + spread, abs=0.002)
    assert tuple(row) == standings.COLUMNS
    row = {column: row[column] for column in ("track", "metric", "method", "kind", "images")}
    assert list(row.values()) == ["photos", "deletion", "saliency", "method", "201"]


def test_controls_are_named_so():
    found = {name: {"deletion": np.arange(3.0)} for name in (*methods.METHODS, *standings.CONTROLS)}
    kinds = {row["method"]: row["kind"] for row in standings.rows_of("photos", found)}
    assert {name for name, kind in kinds.items() if kind == "control"} == {
        *methods.CONTROLS,
        standings.ANOTHER,
    }


def test_seconds_are_not_compared():
    found = {name: {"seconds": np.full(4, 0.001234)} for name in ("saliency", "edges")}
    for row in standings.rows_of("photos", found):
        assert row["mean"] == "0.0012"
        assert [row[each] for each in ("low", "high", "beats", "as_good_as_best")] == [""] * 4


# what is measured


def test_every_method_and_control_is_measured_and_another_images_map(few):
    model, images, classes = network(), pictures(), np.array([0, 1, 2, 3, 4, 0])
    entries = league._every_method(model, images, classes, lambda maps: {"maps": maps})
    assert list(entries) == [*SOME, *methods.CONTROLS, standings.ANOTHER]
    for name in (*SOME, *methods.CONTROLS):
        expected = methods.heatmaps(name, model, images, classes)
        np.testing.assert_array_equal(entries[name]()["maps"], expected)
    own, measured = (
        methods.heatmaps("Grad-CAM", model, images, classes),
        entries[standings.ANOTHER](),
    )
    np.testing.assert_array_equal(measured["maps"][[0, 3]], own[[5, 2]])
    assert measured["seconds"].shape == (6,)
    assert 0 < measured["seconds"][0] < 1


def test_seconds_are_those_of_a_map_without_the_first_call(monkeypatch):
    clock, asked = [0.0], []
    monkeypatch.setattr(league.time, "perf_counter", lambda: clock[0])

    def make(images, classes):
        clock[0] += len(images) if asked else 1_000
        asked.append((len(images), len(classes)))
        return images

    images = np.zeros((4, 2, 2, 1))
    found = league._measure(make, images, np.zeros(4, int), lambda maps: {"size": maps.sum()})
    np.testing.assert_array_equal(found["seconds"], [1, 1, 1, 1])
    assert asked == [(1, 1), (4, 4)]


def test_faithfulness_is_measured_on_the_top_class(few):
    model, images = network(), pictures()
    classes = model.predict(images, verbose=0).argmax(axis=1)
    found = league._faithfulness(model, images)["Grad-CAM"]()
    asked = model, images, methods.heatmaps("Grad-CAM", model, images, classes), classes
    expected = {
        "deletion": metrics.deletion(*asked, steps=14).area,
        "insertion": metrics.insertion(*asked, steps=14).area,
        "deletion, blur": metrics.deletion(*asked, steps=14, baseline="blur").area,
        "insertion, blur": metrics.insertion(*asked, steps=14, baseline="blur").area,
        "average drop": metrics.average_drop(*asked),
        "average increase": metrics.average_increase(*asked),
        "empty": asked[2].max(axis=(1, 2)) == 0,
    }
    assert set(found) == {*expected, "seconds"}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_marks_are_new_images_with_their_right_class(few):
    entries = league.marks(5)
    found, planted = entries["Grad-CAM"](), ground_truth.marked(5, seed=1)
    maps = methods.heatmaps("Grad-CAM", ground_truth.load("marks"), planted.images, planted.labels)
    pointing = metrics.pointing_game(maps, planted.evidence)
    np.testing.assert_array_equal(found["pointing"], pointing)
    assert pointing.mean() > 0.5
    at_the_decoy = metrics.pointing_game(maps, planted.decoys)
    np.testing.assert_array_equal(found["pointing at the decoy"], at_the_decoy)
    energy = metrics.energy_inside(maps, planted.evidence)
    np.testing.assert_allclose(found["energy inside"], energy, rtol=1e-6)
    assert standings.ANOTHER in entries


def test_mosaics_are_asked_for_one_garment_each(few, fashion):
    entries = league.mosaics(5)
    assert standings.ANOTHER not in entries
    canvases, classes = league.sure_mosaics(5)
    cells = [0, 1, 2, 3, 0]
    wanted = classes[range(5), cells]
    maps = methods.heatmaps("Grad-CAM", league.mosaic_network(), canvases, wanted)
    shares = maps.reshape(5, 2, 28, 2, 28).sum(axis=(2, 4)) / maps.sum(axis=(1, 2)).reshape(5, 1, 1)
    expected = shares.reshape(5, 4)[range(5), cells]
    found = entries["Grad-CAM"]()["grid pointing"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found.mean() > 0.4


def test_garments_of_mosaics_are_told_apart_for_sure(fashion):
    canvases, classes = league.sure_mosaics(6)
    quarters = canvases.reshape(6, 2, 28, 2, 28).transpose(0, 1, 3, 2, 4).reshape(24, 28, 28, 1)
    probabilities = np.array(models.load_fashion_cnn(pooled_head=True)(quarters))
    assert probabilities[np.arange(24), classes.ravel()].min() > 0.9


def test_mosaic_network_is_the_pooled_one_for_larger_images():
    model, larger = models.load_fashion_cnn(pooled_head=True), league.mosaic_network()
    assert larger.input_shape == (None, 56, 56, 1)
    for one, other in zip(model.get_weights(), larger.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert models.to_logits(larger) is larger
    last = keras.Model(larger.input, larger.get_layer("pool3").output)
    canvas = np.random.default_rng(0).random((1, 56, 56, 1), np.float32)
    dense = model.get_layer("Dense_10nb")
    expected = np.mean(last(canvas), axis=(1, 2)) @ dense.kernel.numpy() + dense.bias.numpy()
    np.testing.assert_allclose(larger(canvas), expected, rtol=1e-4, atol=1e-4)


def test_heads_compare_layers_methods_and_drawings(fashion):
    entries = league.heads(3)
    assert len(entries) == 2 * 3 * 3 * 2
    assert list(entries)[:2] == [
        "flattened, final, Grad-CAM, placed",
        "flattened, final, Grad-CAM, resized",
    ]
    images = fashion.test_images[:3]
    for name, pooled_head, layer, method, placement in [
        ("pooled, norm8, LayerCAM, resized", True, "norm8", "LayerCAM", "resize"),
        ("flattened, pool3, HiResCAM, placed", False, "pool3", "HiResCAM", "receptive_field"),
    ]:
        model = models.to_logits(models.load_fashion_cnn(pooled_head))
        classes = np.argmax(model(images), axis=1)
        asked = model, images, classes
        maps = methods.heatmaps(method, *asked, layer=layer, placement=placement)
        own, others = (
            metrics.deletion(model, images, each, classes, steps=7).area
            for each in (maps, maps[[2, 0, 1]])
        )
        found = entries[name]()
        np.testing.assert_allclose(found["deletion"], own, rtol=1e-4)
        np.testing.assert_allclose(found["deletion less another's"], own - others, atol=1e-4)


def test_photos_want_the_real_network(monkeypatch):
    backbone = models.Backbone("MobileNet", network(), "random, seed 0", (14, 14), "last")
    monkeypatch.setattr(models, "load_backbone", lambda *_, **__: backbone)
    with pytest.raises(OSError, match="measured with MobileNet's ImageNet weights: go online"):
        league.four_photos(4)


def test_tracks_are_as_large_as_the_readme_says():
    sizes = {name: count for name, (count, _) in league.TRACKS.items()}
    assert sizes == {
        "marks": 400,
        "mosaics": 60,
        "Fashion-MNIST": 200,
        "photos": 4,
        "heads": 200,
    }


def test_two_runs_are_equal_but_for_seconds(few, tmp_path):
    first, again = (league.run(("marks",), 5, tmp_path / name) for name in ("one", "two"))
    assert {row["images"] for row in first} == {"5"}
    assert len(first) == 4 * (len(SOME) + len(standings.CONTROLS))
    for one, other in zip(first, again, strict=True):
        if one["metric"] == "seconds":
            other["mean"] = one["mean"]
        assert one == other


# a run that was stopped


def test_a_stopped_run_goes_on_where_it_was(tiny, tmp_path, monkeypatch):
    tracks = tuple(league.TRACKS)
    undisturbed = league.run(tracks, None, tmp_path / "undisturbed")
    assert len(tiny) == 6
    tiny.clear()
    count, make = league.TRACKS["Fashion-MNIST"]

    def stopped():
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        tracks_with_a_stop = {
            **league.TRACKS,
            "Fashion-MNIST": (count, lambda count: {**make(count), "Grad-CAM++": stopped}),
        }
        patched.setattr(league, "TRACKS", tracks_with_a_stop)
        with pytest.raises(KeyboardInterrupt):
            league.run(tracks, None, tmp_path / "stopped")
    assert len(tiny) == 4
    tiny.clear()
    assert league.run(tracks, None, tmp_path / "stopped") == undisturbed
    assert tiny == ["Fashion-MNIST: Grad-CAM++", "Fashion-MNIST: edges"]


def test_half_a_file_does_not_count(tiny, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            league.run(("marks",), None, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".marks-edges.json.1234.part").write_text('{"pointing": [0.1, 0.')
    tiny.clear()
    league.run(("marks",), None, tmp_path)
    assert len(tiny) == 3
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_fewer_images_are_asked_for_and_no_more_than_there_are(monkeypatch, tmp_path):
    asked = []

    def track(count):
        asked.append(count)
        return {"edges": lambda: {"deletion": np.zeros(2)}}

    monkeypatch.setattr(league, "TRACKS", {"marks": (8, track)})
    for index, images in enumerate([None, 3, 100]):
        league.run(("marks",), images, tmp_path / str(index))
    assert asked == [8, 3, 8]


def test_results_of_another_state_are_not_taken(tiny, places, monkeypatch):
    weights = places / "folder" / "marks.weights.h5"
    weights.write_bytes(b"one")
    package = places / "cam_helpers"
    package.mkdir()
    (package / "cams.py").write_text("one")
    monkeypatch.setattr(league, "__file__", str(package / "league.py"))
    asked = (("marks",), 4)
    folders = [league.kept_in(*asked)]
    assert folders[0].parent == places / "output_folder" / "league"
    league.run(*asked)
    league.run(*asked)
    assert len(tiny) == 3
    assert len(list(folders[0].glob("*.json"))) == 3
    for change in (
        lambda: weights.write_bytes(b"two"),
        lambda: (package / "cams.py").write_text("two"),
        lambda: monkeypatch.setattr(league.importlib.metadata, "version", lambda name: "9"),
    ):
        change()
        assert league.kept_in(*asked) == league.kept_in(*asked)
        folders.append(league.kept_in(*asked))
        tiny.clear()
        league.run(*asked)
        assert len(tiny) == 3
    folders += [league.kept_in(("marks",), None), league.kept_in(("marks", "photos"), 4)]
    assert len(set(folders)) == 6


# the table


def row(track, metric, method, mean, beats=(), **others):
    entry = dict.fromkeys(standings.COLUMNS, "")
    entry |= {"track": track, "metric": metric, "method": method, "mean": str(mean)}
    return {**entry, "beats": "; ".join(beats), **others}


def test_table_is_read_as_it_was_written(tiny, tmp_path):
    path = tmp_path / "league.csv"
    path.write_text("old")
    rows = [*league.run(("marks",), None, tmp_path / "kept"), row("heads", "deletion", "a, b", 1)]
    standings.write(rows, path)
    assert standings.read(path) == rows
    lines = path.read_bytes().split(b"\n")
    assert lines[0].decode() == ",".join(standings.COLUMNS)
    assert len(lines) == len(rows) + 2
    assert {each.name for each in tmp_path.iterdir()} == {"league.csv", "kept"}


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "league.csv"
    path.write_text("old")
    with pytest.raises(ValueError, match="dict contains fields not in fieldnames"):
        standings.write([{"colour": "red"}], path)
    assert path.read_text() == "old"


def test_means_are_those_of_one_track_and_metric():
    rows = [
        row("marks", "pointing", "saliency", 0.25),
        row("marks", "pointing", "edges", 0.5),
        row("marks", "energy inside", "edges", 0.1),
        row("photos", "pointing", "edges", 0.2),
    ]
    assert standings.means(rows, "marks", "pointing") == {"saliency": 0.25, "edges": 0.5}


def test_beating_all_means_every_control_of_the_track():
    every = standings.CONTROLS
    but_another = [name for name in every if name != standings.ANOTHER]
    for track, beats, expected in [
        ("marks", every, True),
        ("marks", but_another, False),
        ("mosaics", but_another, True),
        ("mosaics", but_another[1:], False),
        ("marks", (), False),
    ]:
        assert standings.beats_all(row(track, "pointing", "saliency", 1, beats)) == expected


def test_text_puts_metrics_side_by_side():
    interval = {"low": "0.1", "high": "0.345"}
    rows = [
        row("marks", "pointing", "saliency", 0.25, standings.CONTROLS, **interval),
        row("marks", "energy inside", "saliency", 0.5, **interval),
        row("marks", "pointing", "edges", 1, **interval),
        row("marks", "energy inside", "edges", 0, **interval),
        row("photos", "pointing", "deconvnet", 1, **interval),
    ]
    assert standings.text(rows, "marks", ["energy inside", "pointing"]).splitlines() == [
        "                 energy inside              pointing",
        "saliency     0.50   0.10…0.34      0.25   0.10…0.34*",
        "edges        0.00   0.10…0.34      1.00   0.10…0.34 ",
    ]


def shown(rows):
    """Return the cells of the README's table, line by line."""
    lines = [line.strip("|").split("|") for line in standings.shown(rows).splitlines()]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in lines}


def test_readme_shows_every_method_and_control_in_its_column():
    found = shown(
        [
            row("marks", "pointing", "saliency", 0.256, standings.CONTROLS),
            row("photos", "insertion", "edges", 0.5),
            row("Fashion-MNIST", "seconds", "saliency", 0.00123),
            row("Fashion-MNIST", "insertion", "saliency", 0.1),
        ]
    )
    controls = [f"*{name}*" for name in standings.CONTROLS]
    assert list(found) == ["", "---", *methods.METHODS, *controls]
    assert found["saliency"] == ["**0.26**", "", "", "0.10", "", "", "1.2"]
    assert found["*edges*"] == ["", "", "", "", "", "0.50", ""]
    assert found[""] == [heading for heading, _, _ in standings.SHOWN]
    assert all(name in league.TRACKS for _, name, _ in standings.SHOWN)


def test_readme_changes_between_its_comments_alone(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(
        f"# Käse\n\n{standings.START}\nold\n{standings.END}\n\nafter\n", encoding="utf-8"
    )
    rows = [row("marks", "pointing", "saliency", 0.5)]
    for _ in range(2):
        standings.into_readme(rows, path)
        text = path.read_text(encoding="utf-8")
        table = f"{standings.START}\n{standings.shown(rows)}\n{standings.END}"
        assert text == f"# Käse\n\n{table}\n\nafter\n"


@pytest.mark.parametrize(
    "text", ["nothing", standings.START, f"{standings.END} {standings.START} rest"]
)
def test_readme_without_the_comments_stays_as_it_is(text, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected <!-- league --> and then <!-- end of league"):
        standings.into_readme([], path)
    assert path.read_text() == text


# the command


def call(*arguments):
    return CliRunner().invoke(league.main, arguments, catch_exceptions=False)


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(keras.config, "disable_interactive_logging", lambda: None)


def test_make_league_writes_table_and_readme_and_clears_up(tiny, places, fashion, quiet):
    kept = league.kept_in(tuple(league.TRACKS), None)
    other = kept.with_name("another")
    other.mkdir(parents=True)
    result = call()
    path = places / "folder" / "league.csv"
    assert result.output == f"12 rows in {path}\n"
    rows = standings.read(path)
    assert {row["track"] for row in rows} == {"marks", "Fashion-MNIST"}
    text = (places / "README.md").read_text(encoding="utf-8")
    assert text == f"before\n{standings.START}\n{standings.shown(rows)}\n{standings.END}\nafter\n"
    assert "old" not in text
    assert not kept.exists()
    assert other.exists()


def test_a_part_of_the_table_goes_to_its_own_file(tiny, places, fashion, quiet, tmp_path):
    before = (places / "README.md").read_text()
    assert call("--only", "marks", "--images", "2", "--out", str(tmp_path / "part.csv")).output
    assert {row["track"] for row in standings.read(tmp_path / "part.csv")} == {"marks"}
    assert (places / "README.md").read_text() == before
    assert not (places / "folder" / "league.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "marks"], "a part of the table goes to a file of its own: add --out FILE."),
        (["--images", "5"], "a part of the table goes to a file of its own: add --out FILE."),
        (["--images", "1", "--out", "x"], "1 is not in the range x>=2"),
        (["--only", "cats"], "'cats' is not one of 'marks', 'mosaics', 'Fashion-MNIST', 'photos'"),
    ],
)
def test_usage(arguments, message, quiet):
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_the_table_is_not_measured_on_drawn_garments(tiny, places, quiet, monkeypatch):
    drawn = data.Images(*garments.dataset(9, 0), *garments.dataset(9, 1), "drawn garments")
    monkeypatch.setattr(data, "fashion_mnist", lambda: drawn)
    result = call()
    assert result.exit_code == 2
    assert "measured on Fashion-MNIST, which cannot be had here" in result.output
    assert not tiny


# the committed table


@pytest.fixture(scope="module")
def committed():
    if not (data.folder() / standings.FILE).is_file():
        pytest.skip("data/league.csv is not there yet: make league")
    return standings.read()


def test_committed_table_is_whole(committed):
    assert tuple(committed[0]) == standings.COLUMNS
    sizes = {row["track"]: int(row["images"]) for row in committed}
    assert sizes == {name: count for name, (count, _) in league.TRACKS.items()}
    for track in ("marks", "mosaics", "Fashion-MNIST", "photos"):
        expected = {*methods.METHODS, *standings.CONTROLS}
        if track == "mosaics":
            expected.remove(standings.ANOTHER)
        for metric in {row["metric"] for row in committed if row["track"] == track}:
            assert set(standings.means(committed, track, metric)) == expected
    assert {row["metric"] for row in committed} == set(standings.BETTER)
    for each in committed:
        assert each["better"] == standings.BETTER[each["metric"]]
        if each["metric"] != "seconds":
            assert float(each["low"]) <= float(each["mean"]) <= float(each["high"])


def test_committed_table_has_the_controls_where_theory_says(committed):
    pointing = standings.means(committed, "marks", "pointing")
    chance = 49 / 28**2
    assert abs(pointing["random pixels"] - chance) < 0.04
    assert pointing["Grad-CAM"] >= 0.95
    grid = standings.means(committed, "mosaics", "grid pointing")
    assert grid["random pixels"] == pytest.approx(0.25, abs=0.02)


def test_readme_shows_the_committed_table(committed):
    text = (data.CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert f"{standings.START}\n{standings.shown(committed)}\n{standings.END}" in text
