"""When last.pth is written: at best scores, once a minute between them, and at the end."""
import pytest

from engine import checkpoints, trainer
from tests import test_training
from tests.test_training import assert_same_folders, load, rows_of, tiny_task, train

no_figures = test_training.no_figures


def saved_steps(monkeypatch):
    """The list that gets the step of every last.pth that is written."""
    steps, save = [], checkpoints.save

    def note(content, path):
        if path.name == 'last.pth':
            steps.append(content['progress']['step'])
        save(content, path)

    monkeypatch.setattr(trainer.checkpoints, 'save', note)
    return steps


@pytest.mark.parametrize(('seconds', 'expected'), [(60, [2, 8]), (0, [2, 4, 6, 8])])
def test_between_best_scores_and_the_end_saves_are_a_minute_apart(tmp_path, monkeypatch, seconds, expected):
    steps = saved_steps(monkeypatch)
    monkeypatch.setattr(trainer, 'SECONDS_BETWEEN_SAVES', seconds)
    train(tmp_path, tiny_task(scores=[0.9, 0.5, 0.4, 0.3]), every=2)
    assert steps == expected


def test_a_kill_after_validations_that_were_not_saved_repeats_them(tmp_path):
    class Killed(BaseException):
        """Stands for SIGKILL: nothing catches it."""

    def killed(step, loss):
        if step == 7:
            raise Killed
        return loss

    scores = [0.9, 0.5, 0.4, 0.3]
    train(tmp_path / 'whole', tiny_task(scores=scores), every=2)
    with pytest.raises(Killed):
        train(tmp_path / 'parts', tiny_task(killed, scores), every=2)
    assert load(tmp_path / 'parts', 'last.pth')['progress']['step'] == 2
    assert [row['step'] for row in rows_of(tmp_path / 'parts')] == [2, 4, 6]
    train(tmp_path / 'parts', tiny_task(scores=scores[1:]), every=2)
    assert_same_folders(tmp_path / 'whole', tmp_path / 'parts')


def test_patience_ends_with_a_saved_state_from_which_more_patience_goes_on(tmp_path):
    scores = [0.9, 0.5, 0.4, 0.3]
    train(tmp_path / 'whole', tiny_task(scores=scores), every=2)
    train(tmp_path / 'parts', tiny_task(scores=scores), every=2, PATIENCE=2)
    assert load(tmp_path / 'parts', 'last.pth')['progress']['step'] == 6
    train(tmp_path / 'parts', tiny_task(scores=scores[3:]), every=2, PATIENCE=0)
    assert_same_folders(tmp_path / 'whole', tmp_path / 'parts')
