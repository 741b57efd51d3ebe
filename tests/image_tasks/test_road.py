"""From `OptinPruner.evaluate` to report, card, folder, Hub and command line."""

import copy
import io
import json

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from image_tasks_data import COLORS, SIZES, maps, segmentation_processor, segmenter, write_scenes
from pictures import image_processor
from PIL import Image
from test_classification import NAMES, classifier, write_classes
from tiny import perturbed, tiny_samples

from optimum_optin import OptinConfig, OptinPruner, PruningReport
from optimum_optin.commands import run
from optimum_optin.evaluation.comparison import evaluate_model
from optimum_optin.evaluation.registry import KNOWN, find_task
from optimum_optin.files.model_files import MASKS, left_over
from optimum_optin.image_tasks.batches import opened_image
from optimum_optin.image_tasks.pictures import masks_beside, palette
from optimum_optin.image_tasks.segmentation import SemanticSegmentation, semantic_maps
from optimum_optin.publishing.pruned_folders import write_report

FAST = OptinConfig(flops=0.5, probes=8)


@pytest.fixture
def scenes(tmp_path):
    return write_scenes(tmp_path / "scenes")


@pytest.fixture
def pruner():
    """A segmenter with another one in the place of what was pruned."""
    pruner = OptinPruner(segmenter(), segmentation_processor())
    pruner.pruned_model = perturbed(copy.deepcopy(pruner.model), seed=5)
    pruner.report = PruningReport(0.5, 0.5, 64, 200, 100, 20, 10, {"layers.0": {"heads": {"kept": 1, "units": 2}}})
    pruner.report.config.update(OptinConfig().to_dict())
    return pruner


def _seen(model, scenes):
    """What a model sees in the first image."""
    image = Image.open(sorted((scenes / "images").iterdir())[0])
    with torch.no_grad():
        outputs = model(**segmentation_processor()(images=image, return_tensors="pt"))
    return semantic_maps({"logits": outputs.logits}, [SIZES[0]], segmentation_processor())[0].numpy()


def test_the_report_has_both_models_figures(pruner, scenes):
    entry = pruner.evaluate("semantic-segmentation", data_dir=scenes)
    assert (entry["task"], entry["dataset"], entry["split"], entry["samples"]) == (
        "semantic-segmentation",
        "scenes",
        "all",
        len(SIZES),
    )
    for which, model in (("dense", pruner.model), ("pruned", pruner.pruned_model)):
        alone = evaluate_model(model, pruner.processor, "semantic-segmentation", data_dir=scenes)
        for name, values in alone["metrics"].items():
            assert entry["metrics"][name][which] == values["value"]
            assert entry["metrics"][name][f"{which}_error"] == values["error"] > 0
        assert {name: values[which] for name, values in entry["classes"].items()} == alone["classes"]
    assert pruner.report.evaluations == [entry]
    assert "semantic-segmentation, all, 6 samples: mean_iou" in str(pruner.report)


def test_the_card_shows_the_figures_and_both_models_masks(pruner, scenes, tmp_path):
    pruner.evaluate("semantic-segmentation", data_dir=scenes)
    pruner.save_pretrained(tmp_path / "small")
    loaded = PruningReport.load(tmp_path / "small")
    assert loaded.evaluations == pruner.report.evaluations
    card = ModelCard.load(tmp_path / "small" / "README.md")
    assert card.text.count(f"]({MASKS})") == 1
    assert "| semantic-segmentation | all | 6 | mean_iou |" in card.text
    for name in COLORS:
        assert f"\n| {name} | 0." in card.text
    assert card.data.metrics == ["mean_iou", "pixel_accuracy"]
    (first, _) = card.data.eval_results
    assert (first.task_type, first.dataset_type, first.dataset_name) == ("image-segmentation", "scenes", "scenes")
    assert first.metric_value == loaded.evaluations[0].metrics["mean_iou"].pruned
    assert str(tmp_path) not in str(card)

    picture = np.asarray(Image.open(tmp_path / "small" / MASKS))
    height, width = SIZES[0]
    assert picture.shape == (height, 3 * width + 2 * 8, 3)
    for place, model in ((1, pruner.model), (2, pruner.pruned_model)):
        panel = picture[:, place * (width + 8) : place * (width + 8) + width]
        assert np.array_equal(panel, palette()[_seen(model, scenes)])
    samples = SemanticSegmentation().read(data_dir=scenes)
    assert np.array_equal(picture[:, :width], opened_image(samples, 0))


def test_the_picture_is_there_only_if_it_was_measured(pruner, scenes, tmp_path):
    pruner.save_pretrained(tmp_path / "small")
    assert not (tmp_path / "small" / MASKS).exists()
    assert MASKS not in (tmp_path / "small" / "README.md").read_text()


def test_the_picture_of_a_model_that_is_saved_over_goes(pruner, scenes, tmp_path):
    pruner.evaluate("semantic-segmentation", data_dir=scenes)
    pruner.save_pretrained(tmp_path / "small")
    (tmp_path / "small" / "masks.png").write_bytes(b"the user's own")
    assert left_over(tmp_path / "small") == [], "so that the picture is pushed"
    pruner._pictures = {}
    pruner.save_pretrained(tmp_path / "small")
    assert not (tmp_path / "small" / MASKS).exists() and (tmp_path / "small" / "masks.png").exists()
    pruner.evaluate("semantic-segmentation", data_dir=scenes)
    assert MASKS in pruner.create_model_card("me/small").text


def test_the_picture_goes_to_the_hub(pruner, scenes, tmp_path, hub):
    pruner.evaluate("semantic-segmentation", data_dir=scenes)
    pruner.push_to_hub("me/small")
    pushed = hub.files("me/small")
    assert MASKS in pushed and f"]({MASKS})".encode() in pushed["README.md"]
    Image.open(io.BytesIO(pushed[MASKS])).load()


def test_a_folder_keeps_its_picture_when_more_is_measured(pruner, scenes, tmp_path, hub):
    pruner.evaluate("semantic-segmentation", data_dir=scenes)
    pruner.save_pretrained(tmp_path / "small")
    before = (tmp_path / "small" / MASKS).read_bytes()
    write_report(tmp_path / "small", pruner.report)
    assert f"]({MASKS})" in (tmp_path / "small" / "README.md").read_text()
    write_report(tmp_path / "small", pruner.report, {MASKS: b"another"})
    assert (tmp_path / "small" / MASKS).read_bytes() == b"another" != before


def test_a_large_photo_becomes_a_small_picture():
    content = masks_beside(np.zeros((1000, 1500, 3), np.uint8), [np.zeros((1000, 1500), int)])
    assert Image.open(io.BytesIO(content)).size == (2 * 480 + 8, 320)


def test_a_classifier_is_measured_as_it_is_saved(tmp_path):
    pruner = OptinPruner(classifier(), image_processor(), FAST)
    folder = write_classes(tmp_path / "zoo")
    pruner.prune(tiny_samples(model=pruner.model))
    entry = pruner.evaluate("image-classification", data_dir=folder, batch_size=5)
    alone = evaluate_model(pruner.pruned_model, image_processor(), "image-classification", data_dir=folder)
    assert entry["metrics"]["top_5_accuracy"]["pruned"] == alone["metrics"]["top_5_accuracy"]["value"]
    pruner.save_pretrained(tmp_path / "small")
    card = ModelCard.load(tmp_path / "small" / "README.md")
    assert card.data.eval_results[0].task_type == card.data.pipeline_tag == "image-classification"
    assert card.data.metrics == ["accuracy", "top_5_accuracy"] and MASKS not in card.text
    with pytest.raises(ValueError, match="semantic-segmentation needs a model with such a head"):
        pruner.evaluate("semantic-segmentation", data_dir=write_scenes(tmp_path / "scenes"))


def test_a_new_pruning_has_no_picture_of_the_last(scenes):
    pruner = OptinPruner(classifier(), image_processor(), FAST)
    pruner._pictures = {MASKS: b"of the last"}
    pruner.prune(tiny_samples(model=pruner.model))
    assert MASKS not in pruner.create_model_card().text


# Command line


def _saved(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_the_command_measures_one_model_or_two(scenes, tmp_path, capsys):
    model = _saved(segmenter(), segmentation_processor(), tmp_path / "model")
    for place, annotation in enumerate(maps()):
        annotation[annotation == 255] = 9
        Image.fromarray(annotation).save(scenes / "annotations" / f"scene-{place}.png")
    words = ["--task", "semantic-segmentation", "--model", model, "--data-dir", str(scenes), "--ignore-index", "9"]
    assert run("evaluate", [*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = evaluate_model(
        segmenter(), segmentation_processor(), "semantic-segmentation", data_dir=scenes, ignore_index=9
    )
    assert {name: found[name] for name in expected} == expected
    other = _saved(perturbed(segmenter(), seed=3), segmentation_processor(), tmp_path / "dense")
    assert run("evaluate", [*words, "--dense", other]) == 0
    assert "semantic-segmentation, all, 6 samples: mean_iou " in capsys.readouterr().out
    assert run("evaluate", words[:-2]) == 2
    assert "scene-0.png has the class 9, and the model 3 classes" in capsys.readouterr().err
    assert run("evaluate", [*words[:-2], "--task", "image-classification", "--reduce-labels"]) == 2
    assert "image-classification does not take reduce_labels" in capsys.readouterr().err


def test_the_command_updates_a_folder_with_its_picture(pruner, scenes, tmp_path, capsys):
    pruner.save_pretrained(tmp_path / "small")
    dense = _saved(pruner.model, pruner.processor, tmp_path / "dense")
    words = ["--task", "semantic-segmentation", "--model", str(tmp_path / "small"), "--data-dir", str(scenes)]
    assert run("evaluate", [*words, "--dense", dense, "--update"]) == 0
    pruner.evaluate("semantic-segmentation", data_dir=scenes)
    assert PruningReport.load(tmp_path / "small").evaluations == pruner.report.evaluations
    assert (tmp_path / "small" / MASKS).read_bytes() == pruner._pictures[MASKS]
    assert f"]({MASKS})" in (tmp_path / "small" / "README.md").read_text()


def test_prune_measures_before_and_after_and_refuses_before(tmp_path, capsys):
    model = _saved(classifier(), image_processor(), tmp_path / "dense")
    folder = write_classes(tmp_path / "zoo")
    words = [model, "--calibration", str(folder), "--probes", "8", "--evaluate", "image-classification", "--data-dir"]
    assert run("prune", [*words, str(folder), "--output", str(tmp_path / "small"), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["evaluations"]
    assert set(entry["metrics"]["accuracy"]) == {"dense", "dense_error", "pruned", "pruned_error"}
    others = write_classes(tmp_path / "others", ["cat", "zebra"])
    assert run("prune", [*words, str(others), "--output", str(tmp_path / "none")]) == 2
    assert "classes that the model does not know: zebra" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_tasks_have_other_names():
    assert find_task("image-segmentation").name == "semantic-segmentation"
    assert find_task("sst2").name == find_task("glue/sst2").name == "glue/sst2"
    assert {find_task(name).name for name in KNOWN} == set(KNOWN)
    with pytest.raises(ValueError, match=r"glue/sst2 does not take data|glue/sst2 is read from the Hub"):
        find_task("glue/sst2").read(data="glue")
    assert len(NAMES) > 5
