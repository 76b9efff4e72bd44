"""Several processes and accumulation give what one process gives with the whole batch (gloo, on the CPU)."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from m2d_training import OfflineConfig, PretrainConfig, build_pretrainer
from m2d_training.pretraining.trainer import build_optimizer
from m2d_training.runs.state import RunFolder, gather_state, restore_state, write_state
from torch.nn.parallel import DistributedDataParallel

TOLERANCE = 1e-5
SCALER = torch.amp.GradScaler("cpu", enabled=False)
OFFLINE = {
    "none": None,
    "labels": OfflineConfig(kind="labels", dim=5, weight=0.5),
    "text": OfflineConfig(kind="text", dim=16, weight=1.0),
}


def build(kind):
    torch.manual_seed(0)
    return build_pretrainer(
        PretrainConfig(
            input_size=(32, 48),
            patch_size=(16, 8),
            embed_dim=64,
            depth=2,
            predictor_dim=64,
            predictor_depth=1,
            offline=OFFLINE[kind],
        )
    )


def batch(kind, size=4):
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(size, 12, generator=generator).argsort(dim=1)
    target = {
        "none": None,
        "labels": torch.eye(5)[:size],
        "text": torch.randn(size, 16, generator=generator),
    }[kind]
    return torch.randn(size, 1, 32, 48, generator=generator), order[:, :3], order[:, 3:], target


def part(values, start, stop):
    return tuple(None if value is None else value[start:stop] for value in values)


def gradients(pretrainer):
    return {name: p.grad.clone() for name, p in pretrainer.named_parameters() if p.grad is not None}


def whole_gradients(kind):
    pretrainer = build(kind)
    pretrainer(*batch(kind)).total.backward()
    return gradients(pretrainer)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=TOLERANCE, rtol=0, msg=name)


def save_gradients(folder, rank, kind):
    """Gradients that one of two processes ends up with."""
    model = DistributedDataParallel(build(kind))
    model(*part(batch(kind), 2 * rank, 2 * rank + 2)).total.backward()
    torch.save(gradients(model.module), f"{folder}/{kind}-{rank}.pt")


def step_once(model, values):
    """One optimizer and EMA step; the large epsilon keeps Adam from blowing rounding up to whole steps."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, eps=1e-2)
    model(*values).total.backward()
    optimizer.step()
    model.update_target_encoder(0.9)
    return optimizer


def save_sharded_step(folder, rank):
    """A step of a model whose parameters are spread over both processes, gathered afterwards."""
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (2,))
    model = build("labels")
    for block in (*model.encoder.blocks, *model.target_encoder.blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = step_once(model, part(batch("labels"), 2 * rank, 2 * rank + 2))
    state = gather_state(1, model, optimizer, SCALER)
    if rank == 0:
        torch.save(state["model"], f"{folder}/sharded.pt")


def work(folder, rank):
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for kind in OFFLINE:
        save_gradients(folder, rank, kind)
    save_sharded_step(folder, rank)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Folder with what two gloo processes computed."""
    folder = tmp_path_factory.mktemp("two")
    children = [subprocess.Popen([sys.executable, __file__, str(folder), str(rank)]) for rank in range(2)]
    assert [child.wait(150) for child in children] == [0, 0]
    return folder


@pytest.mark.parametrize("kind", list(OFFLINE))
def test_two_processes_give_the_gradients_of_the_whole_batch(two_processes, kind):
    expected = whole_gradients(kind)
    for rank in range(2):
        assert_same(torch.load(two_processes / f"{kind}-{rank}.pt"), expected)


@pytest.mark.parametrize("kind", ["none", "labels"])
def test_accumulation_gives_the_gradients_of_the_whole_batch(kind):
    pretrainer = build(kind)
    for start in range(0, 4, 2):
        (pretrainer(*part(batch(kind), start, start + 2)).total / 2).backward()
    assert_same(gradients(pretrainer), whole_gradients(kind))


def test_a_sharded_model_steps_and_is_gathered_like_a_whole_one(two_processes):
    whole = build("labels")
    step_once(whole, batch("labels"))
    gathered = torch.load(two_processes / "sharded.pt")
    assert gathered.keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(gathered[name], tensor, atol=TOLERANCE, rtol=0, msg=name)


def test_restored_state_continues_exactly(tmp_path):
    def step(model, optimizer):
        model(*batch("none")).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    first, second = build("none"), build("none")
    optimizers = [build_optimizer(model, model.config) for model in (first, second)]
    step(first, optimizers[0])
    state = gather_state(1, first, optimizers[0], SCALER)
    path = write_state(RunFolder(tmp_path), state, keep_every_steps=1)
    assert restore_state(path, second, optimizers[1], SCALER) == 1
    for model, optimizer in zip((first, second), optimizers, strict=True):
        step(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
