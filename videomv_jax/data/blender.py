"""Render one mesh with Blender: a program for a Python that has `bpy`.

    python -P blender.py JOB.json

It imports nothing of ours, as Blender's Python may be another one. The job is an object
with `model`, `views` (folders' stems to write and OpenGL camera-to-world matrices),
`fov` in radians, `size`, `samples`, `engine`, `extent`, `geometry`, `threads`. A mesh
that cannot be rendered ends the program with code 3 and the reason as its last line.

The light: a uniform white sky of strength 0.5 and two suns, one of 1.5 from above and
+x, +y, one of 0.5 from the opposite side, both soft; colours are shown as they are
("Standard", no filmic curve).
"""

import json
import math
import sys
from pathlib import Path

import bpy  # pyright: ignore[reportMissingImports]
import mathutils  # pyright: ignore[reportMissingImports]

UNUSABLE = 3
_SUNS = (((1.0, 1.0, 1.6), 1.5), ((-1.0, -0.6, 0.4), 0.5))


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        render(job)
    except (RuntimeError, ValueError, AttributeError, TypeError, OSError) as error:
        print(str(error).strip().replace("\n", " ")[-300:])
        sys.exit(UNUSABLE)


def render(job: dict) -> None:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    load(job["model"])
    meshes = keep_meshes()
    normalise(meshes, job["extent"])
    for mesh in meshes:
        paint(mesh)
    light()
    scene = bpy.context.scene
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    scene.collection.objects.link(camera)
    scene.camera = camera
    camera.data.sensor_fit = "HORIZONTAL"
    camera.data.angle = job["fov"]
    settings(scene, job)
    for view in job["views"]:
        camera.matrix_world = mathutils.Matrix(view["camera_to_world"])
        scene.render.filepath = view["stem"] + ".png"
        bpy.ops.render.render(write_still=True)
        if job["geometry"]:
            image = scene.render.image_settings
            image.media_type = "MULTI_LAYER_IMAGE"
            image.file_format = "OPEN_EXR_MULTILAYER"
            result = bpy.data.images["Render Result"]
            result.save_render(view["stem"] + "_nd.exr", scene=scene)
            pictures(scene)


def load(path: str) -> None:
    """Import a file; its y axis becomes z where its format has y up."""
    kind = Path(path).suffix.lower()
    if kind in (".glb", ".gltf"):
        bpy.ops.import_scene.gltf(filepath=path)
    elif kind == ".obj":
        bpy.ops.wm.obj_import(filepath=path)
    elif kind == ".ply":
        bpy.ops.wm.ply_import(filepath=path)
    elif kind == ".stl":
        bpy.ops.wm.stl_import(filepath=path)
    else:
        raise ValueError(f"unknown kind of file {kind}")


def keep_meshes() -> list:
    """The meshes with faces; cameras, lights and others go."""
    for thing in list(bpy.data.objects):
        if thing.type in ("CAMERA", "LIGHT"):
            bpy.data.objects.remove(thing)
    meshes = [
        o
        for o in bpy.context.scene.objects
        if o.type == "MESH" and len(o.data.polygons) and not o.hide_render
    ]
    if not meshes:
        raise ValueError("no faces in it")
    return meshes


def normalise(meshes: list, extent: float) -> None:
    """Put the middle of all corners' box at the origin, the farthest at `extent`."""
    bpy.context.view_layer.update()
    graph = bpy.context.evaluated_depsgraph_get()
    corners = []
    for thing in meshes:
        evaluated = thing.evaluated_get(graph)
        shape = evaluated.to_mesh()
        corners += [evaluated.matrix_world @ v.co for v in shape.vertices]
        evaluated.to_mesh_clear()
    if not all(math.isfinite(x) for c in corners for x in c):
        raise ValueError("corners that are not finite")
    low = [min(c[i] for c in corners) for i in range(3)]
    high = [max(c[i] for c in corners) for i in range(3)]
    middle = mathutils.Vector([(a + b) / 2 for a, b in zip(low, high, strict=True)])
    radius = max((c - middle).length for c in corners)
    if radius == 0:
        raise ValueError("all corners in one point")
    # A parent moves whatever hangs together.
    root = bpy.data.objects.new("root", None)
    bpy.context.scene.collection.objects.link(root)
    for thing in bpy.context.scene.objects:
        if thing.parent is None and thing is not root:
            thing.parent = root
    factor = extent / radius
    root.scale = (factor,) * 3
    root.location = -factor * middle
    bpy.context.view_layer.update()


def paint(thing) -> None:
    """Colours of the corners where no texture is; grey where nothing is."""
    data = thing.data
    if not any(data.materials):
        data.materials.clear()
        material = bpy.data.materials.new("plain")
        material.use_nodes = True
        data.materials.append(material)
    colors = data.color_attributes
    if not len(colors):
        return
    name = (colors.active_color or colors[0]).name
    for material in data.materials:
        if material is None or not material.use_nodes:
            continue
        tree = material.node_tree
        for node in list(tree.nodes):
            if node.type != "BSDF_PRINCIPLED":
                continue
            base = node.inputs["Base Color"]
            if not base.is_linked:
                source = tree.nodes.new("ShaderNodeVertexColor")
                source.layer_name = name
                tree.links.new(source.outputs["Color"], base)


def light() -> None:
    world = bpy.data.worlds.new("world")
    world.use_nodes = True
    background = world.node_tree.nodes["Background"]
    background.inputs["Color"].default_value = (1, 1, 1, 1)
    background.inputs["Strength"].default_value = 0.5
    bpy.context.scene.world = world
    for number, (place, strength) in enumerate(_SUNS):
        sun = bpy.data.lights.new(f"sun{number}", "SUN")
        sun.energy, sun.angle = strength, math.radians(20)
        thing = bpy.data.objects.new(f"sun{number}", sun)
        toward = mathutils.Vector(place)
        thing.rotation_mode = "QUATERNION"
        thing.rotation_quaternion = toward.to_track_quat("Z", "Y")
        bpy.context.scene.collection.objects.link(thing)


def settings(scene, job: dict) -> None:
    scene.render.engine = "CYCLES" if job["engine"] == "cycles" else "BLENDER_EEVEE"
    if job["engine"] == "cycles":
        scene.cycles.device = "CPU"
        scene.cycles.samples = job["samples"]
        scene.cycles.use_denoising = True
        scene.cycles.seed = 0
    scene.render.threads_mode = "FIXED"
    scene.render.threads = job["threads"]
    # Another view of the same scene costs no preparation.
    scene.render.use_persistent_data = True
    scene.render.resolution_x = scene.render.resolution_y = job["size"]
    scene.render.resolution_percentage = 100
    scene.render.film_transparent = True
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.look = "None"
    scene.view_layers[0].use_pass_z = job["geometry"]
    scene.view_layers[0].use_pass_normal = job["geometry"]
    pictures(scene)


def pictures(scene) -> None:
    image = scene.render.image_settings
    image.media_type = "IMAGE"
    image.file_format = "PNG"
    image.color_mode, image.color_depth = "RGBA", "8"


if __name__ == "__main__":
    main()
