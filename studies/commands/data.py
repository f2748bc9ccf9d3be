"""Data before and after caching: a simulated world, and what a cache holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invoke.context import Context

from cache.errors import ConfigError
from studies.commands.command_line import cache_root, console, need, next_step, path_of, print_json, task, whole


@task(
    help={
        "out": "folder to write; must not exist, or be empty",
        "scenes": "scenes of the train split; the only ones of a test version",
        "val-scenes": "scenes of the val split (default: a quarter of --scenes)",
        "frames": "key frames a scene, half a second apart",
        "sweeps": "LiDAR sweeps before each key frame, 0 to 9",
        "between-images": "camera images, too, of so many of the sweeps between two key frames, for --between",
        "seed": "the world: equal seeds give equal bytes",
        "version": "v1.0-trainval, v1.0-mini or v1.0-test",
        "workers": "processes (default: one per core)",
    }
)
def simulate(
    c: Context,
    out: str | None = None,
    scenes: int = 8,
    val_scenes: str | None = None,
    frames: int = 4,
    sweeps: int = 4,
    between_images: int = 0,
    seed: int = 0,
    version: str = "v1.0-trainval",
    workers: str | None = None,
) -> None:
    """Write a simulated world as a genuine nuScenes folder, which the unmodified devkit opens.

    Example: ./bevcask simulate --out world --scenes 8 --frames 4
    Next: ./bevcask cache-frames, with the folder as --data-root.
    """
    from studies.simulation import simulate_with_progress, summary_line

    folder = Path(need(out, "--out", "a folder for the simulated data set"))
    val = whole(val_scenes, "--val-scenes")
    summary = simulate_with_progress(
        folder,
        version=version,
        train_scenes=scenes,
        val_scenes=max(1, scenes // 4) if val is None else val,
        frames=frames,
        sweeps=sweeps,
        seed=seed,
        between_images=between_images,
        workers=whole(workers, "--workers", 1),
    )
    console.print(summary_line(summary), soft_wrap=True)
    between = f" --between {between_images}" if between_images else ""
    next_step(f"./bevcask cache-frames --data-root {folder} --version {version} --cache CACHE --points{between}")


@task(
    help={
        "cache": "folder of the stores",
        "token": "one frame: draw it to a PNG",
        "teacher": "the teacher store to draw, too (default: the only one)",
        "out": "the PNG (default: TOKEN.png)",
        "scene": "with --export: the scene, by name",
        "export": "write the scene as a Rerun recording, FILE.rrd: points, cameras, boxes, masks (extra viewer)",
        "run": "with --export: a trained run whose boxes are shown, too",
        "callable": "with --export and --run: the package.module:callable that its student is of, which may run here",
        "order": "tell which rank and worker reads what at a step",
        "recipe": "with --order: whose batch, frames and fields",
        "batch": "with --order: frames a step, of all ranks together (default: the recipe's)",
        "world": "with --order: ranks",
        "workers": "with --order: workers of each rank",
        "step": "with --order: the step, counted over all epochs, or in --epoch where that is given",
        "epoch": "with --order: the epoch",
        "ahead": "with --order: steps read ahead (default: two a worker)",
        "option": "with --order: NAME=VALUE of the order, such as shuffle=blocks, may be given several times",
        "json": "with --order: print a last line of JSON",
    },
    iterable=["option"],
)
def inspect(
    c: Context,
    cache: str | None = None,
    token: str | None = None,
    teacher: str | None = None,
    out: str | None = None,
    scene: str | None = None,
    export: str | None = None,
    run: str | None = None,
    callable: str | None = None,
    order: bool = False,
    recipe: str | None = None,
    batch: str | None = None,
    world: int = 1,
    workers: int = 1,
    step: int = 0,
    epoch: str | None = None,
    ahead: str | None = None,
    option: Any = None,
    json: bool = False,
) -> None:
    """Tell what a cache holds; draw a frame, record a scene, explain who reads what at a step.

    With --token one frame is drawn: six cameras and the bird's-eye view. With --order: which rank and worker reads what
    at a step of training.

    Example: ./bevcask inspect --cache CACHE
    Next: ./bevcask inspect --cache CACHE --token TOKEN, of a token that it tells.
    """
    from studies.inspection import describe, draw_token

    root = cache_root(cache, "a folder or URL of stores")
    if order:
        from studies.benches.registry import parse_options
        from studies.order_view import OrderQuestion, order_tables, order_view
        from trainer.recipe import load_recipe

        asked = OrderQuestion(
            recipe=load_recipe(recipe) if recipe else None,
            batch=whole(batch, "--batch", 1),
            world=world,
            workers=workers,
            step=step,
            epoch=whole(epoch, "--epoch", 0),
            ahead=whole(ahead, "--ahead", 0),
            options=parse_options(option or ()),
        )
        view = order_view(root, asked)
        for renderable in order_tables(view):
            console.print(renderable, markup=False, soft_wrap=isinstance(renderable, str))
        next_step(f"./bevcask inspect --cache {root} --token TOKEN draws one of these frames")
        if json:
            print_json(view)
        return
    if scene or export:
        from studies.recording import SceneRequest, export_scene

        name = need(scene, "--scene", "the name of a scene, such as scene-0003")
        path = Path(need(export, "--export", "a file for the recording, such as scene.rrd"))
        only = [teacher] if teacher else None
        recorded = export_scene(root, SceneRequest(name, path, only, path_of(run), callable or ""))
        console.print(
            f"{name}: {recorded['frames']} frames, {recorded['bytes'] / 1e6:.1f} MB, in {path}", soft_wrap=True
        )
        next_step(f"rerun {path}")
        return
    if run or callable:
        raise ConfigError(f"{'--run' if run else '--callable'} belongs to --export; add --scene NAME --export FILE.rrd")
    if token is None:
        for renderable in describe(root):
            console.print(renderable, soft_wrap=isinstance(renderable, str))
        next_step(f"./bevcask inspect --cache {root} --token TOKEN")
        return
    console.print(f"drawn to {draw_token(root, token, teacher, path_of(out))}", soft_wrap=True)
    next_step(f"./bevcask inspect --cache {root}")
