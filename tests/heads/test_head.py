"""What all heads share: which objects a loss is of, and settings that cannot be."""

import pytest
import torch

from deepdisc.catalog import FLAGS
from deepdisc.errors import InputError
from deepdisc.heads.head import Head
from deepdisc.structures import Instances


def objects(**fields) -> Instances:
    return Instances((32, 32), proposal_boxes=torch.arange(16.0).reshape(4, 4), gt_object=torch.arange(4), **fields)


EDGE, BLENDED, FAINT = (FLAGS[name].value for name in ("EDGE", "BLENDED", "FAINT"))
FLAGGED = torch.tensor([0, EDGE, BLENDED | FAINT, FAINT])


def test_objects_with_the_label_are_chosen_of_each_image():
    batch = [objects(gt_has_z=torch.tensor([True, False, True, True])), objects(), objects(gt_has_z=torch.ones(4))[:0]]
    chosen = Head().labelled(batch, "z")
    assert [x.gt_object.tolist() for x in chosen] == [[0, 2, 3], [], []]


def test_a_label_of_several_numbers_counts_where_any_is_known():
    has = torch.tensor([[True, False], [False, False], [True, True], [False, True]])
    [chosen] = Head().labelled([objects(gt_has_flux=has)], "flux")
    assert chosen.gt_object.tolist() == [0, 2, 3]
    assert torch.equal(chosen.gt_has_flux, has[[0, 2, 3]])


def test_excluded_flags_take_objects_out_and_leave_the_given_instances_alone():
    batch = [objects(gt_has_z=torch.ones(4, dtype=torch.bool), gt_flags=FLAGGED)]
    assert Head(["EDGE"]).labelled(batch, "z")[0].gt_object.tolist() == [0, 2, 3]
    assert Head(["EDGE", "BLENDED"]).labelled(batch, "z")[0].gt_object.tolist() == [0, 3]
    assert Head(["FAINT", "FAINT"]).labelled(batch, "z")[0].gt_object.tolist() == [0, 1]
    assert Head().labelled(batch, "z")[0].gt_object.tolist() == [0, 1, 2, 3] == batch[0].gt_object.tolist()


def test_flags_that_the_data_lack_are_an_error_only_where_they_are_needed():
    labelled = objects(gt_has_z=torch.ones(4, dtype=torch.bool))
    assert len(Head().labelled([labelled], "z")[0]) == 4
    assert [len(x) for x in Head(["EDGE"]).labelled([objects(), labelled[:0]], "z")] == [0, 0]
    with pytest.raises(InputError, match=r"exclude_flags=\['EDGE'\], but the data set gives no flags"):
        Head(["EDGE"]).labelled([labelled], "z")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exclude_flags": ["BLENDS"]}, "'BLENDS' is no flag; there are EDGE, .*nearest: 'BLENDED'"),
        ({"exclude_flags": "EDGE"}, r"must be a list of names: \[EDGE\]"),
        ({"loss_weight": -1.0}, "loss_weight=-1.0 must be finite and not negative"),
        ({"loss_weight": float("nan")}, "loss_weight=nan must be"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        Head(**settings)


def test_a_head_without_calibration_changes_nothing():
    batch = [objects(pred_z=torch.ones(4))]
    assert Head().calibrate(batch) is batch and batch[0].pred_z.tolist() == [1, 1, 1, 1]


class Doubled(Head):
    """Its calibration doubles what it predicts."""

    calibrated = {"pred_z": "z"}  # noqa: RUF012

    def calibration(self, value):
        return 2 * value


def test_calibration_replaces_the_field_of_every_image():
    batch = Doubled().calibrate([objects(pred_z=torch.ones(4)), objects(pred_z=torch.ones(4))[:0]])
    assert batch[0].pred_z.tolist() == [2, 2, 2, 2] and len(batch[1].pred_z) == 0
