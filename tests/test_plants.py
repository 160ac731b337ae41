"""The planted bugs still fit the code, and planting works."""

import pytest

import plants


@pytest.mark.parametrize("plant", plants.PLANTS, ids=lambda plant: plant.name)
def test_a_plant_changes_one_place_of_the_code(plant):
    assert plants.sound_places(plant) == 1
    assert plant.planted != plant.sound
    assert (plants.ROOT / "tests" / plant.caught_by).exists()


def test_the_list_is_in_the_readme():
    assert plants.table() in (plants.ROOT / "tests" / "README.md").read_text()


def test_names_are_unique():
    assert len({plant.name for plant in plants.PLANTS}) == len(plants.PLANTS) >= 10


@pytest.mark.slow
def test_a_plant_is_caught_and_taken_out_again(tmp_path):
    root, plant = plants.copied(tmp_path), next(p for p in plants.PLANTS if p.name == "k3_inverted")
    assert plants.caught(plant, root)
    assert not plants.fails(root, plant.caught_by)
