"""PASCAL-Context: VOC 2010's images labelled all over, in 59 classes and background."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caffe_port.errors import CaffeError
from solve.datasets.images import bgr_blob, label_blob, read_list, read_rgb
from solve.datasets.labels import recoded
from solve.datasets.layer import Params, SegDataLayer
from solve.datasets.matfile import read_mat

CLASSES = (
    'background',
    'aeroplane',
    'bicycle',
    'bird',
    'boat',
    'bottle',
    'bus',
    'car',
    'cat',
    'chair',
    'cow',
    'diningtable',
    'dog',
    'horse',
    'motorbike',
    'person',
    'pottedplant',
    'sheep',
    'sofa',
    'train',
    'tvmonitor',
    'bag',
    'bed',
    'bench',
    'book',
    'building',
    'cabinet',
    'ceiling',
    'clothes',
    'computer',
    'cup',
    'door',
    'fence',
    'floor',
    'flower',
    'food',
    'grass',
    'ground',
    'keyboard',
    'light',
    'mountain',
    'mouse',
    'curtain',
    'platform',
    'sign',
    'plate',
    'road',
    'rock',
    'shelves',
    'sidewalk',
    'sky',
    'snow',
    'bedcloth',
    'track',
    'tree',
    'truck',
    'wall',
    'water',
    'window',
    'wood',
)
MEAN = (104.007, 116.669, 122.679)
# Where the experiments look for it in the project, by the nets' names for the folders.
PLACES = {'voc_dir': 'data/pascal', 'context_dir': 'data/pascal-context'}
# Classes that labels.txt calls otherwise.
ANNOTATED_AS = {'diningtable': 'table', 'bedcloth': 'bedclothes', 'clothes': 'cloth'}
# What pixels are annotated as, in the order of labels.txt.
ANNOTATED = tuple(
    ' '.join(
        """
    accordion, aeroplane, air conditioner, antenna, artillery, ashtray, atrium, baby carriage,
    bag, ball, balloon, bamboo weaving, barrel, baseball bat, basket, basketball backboard,
    bathtub, bed, bedclothes, beer, bell, bench, bicycle, binoculars, bird, bird cage, bird
    feeder, bird nest, blackboard, board, boat, bone, book, bottle, bottle opener, bowl, box,
    bracelet, brick, bridge, broom, brush, bucket, building, bus, cabinet, cabinet door, cage,
    cake, calculator, calendar, camel, camera, camera lens, can, candle, candle holder, cap, car,
    card, cart, case, casette recorder, cash register, cat, cd, cd player, ceiling, cell phone,
    cello, chain, chair, chessboard, chicken, chopstick, clip, clippers, clock, closet, cloth,
    clothes tree, coffee, coffee machine, comb, computer, concrete, cone, container, control
    booth, controller, cooker, copying machine, coral, cork, corkscrew, counter, court, cow,
    crabstick, crane, crate, cross, crutch, cup, curtain, cushion, cutting board, dais, disc,
    disc case, dishwasher, dock, dog, dolphin, door, drainer, dray, drink dispenser, drinking
    machine, drop, drug, drum, drum kit, duck, dumbbell, earphone, earrings, egg, electric fan,
    electric iron, electric pot, electric saw, electronic keyboard, engine, envelope, equipment,
    escalator, exhibition booth, extinguisher, eyeglass, fan, faucet, fax machine, fence, ferris
    wheel, fire extinguisher, fire hydrant, fire place, fish, fish tank, fishbowl, fishing net,
    fishing pole, flag, flagstaff, flame, flashlight, floor, flower, fly, foam, food, footbridge,
    forceps, fork, forklift, fountain, fox, frame, fridge, frog, fruit, funnel, furnace, game
    controller, game machine, gas cylinder, gas hood, gas stove, gift box, glass, glass marble,
    globe, glove, goal, grandstand, grass, gravestone, ground, guardrail, guitar, gun, hammer,
    hand cart, handle, handrail, hanger, hard disk drive, hat, hay, headphone, heater,
    helicopter, helmet, holder, hook, horse, horse-drawn carriage, hot-air balloon, hydrovalve,
    ice, inflator pump, ipod, iron, ironing board, jar, kart, kettle, key, keyboard, kitchen
    range, kite, knife, knife block, ladder, ladder truck, ladle, laptop, leaves, lid, life buoy,
    light, light bulb, lighter, line, lion, lobster, lock, machine, mailbox, mannequin, map,
    mask, mat, match book, mattress, menu, metal, meter box, microphone, microwave, mirror,
    missile, model, money, monkey, mop, motorbike, mountain, mouse, mouse pad, musical
    instrument, napkin, net, newspaper, oar, ornament, outlet, oven, oxygen bottle, pack, pan,
    paper, paper box, paper cutter, parachute, parasol, parterre, patio, pelage, pen, pen
    container, pencil, person, photo, piano, picture, pig, pillar, pillow, pipe, pitcher, plant,
    plastic, plate, platform, player, playground, pliers, plume, poker, poker chip, pole, pool
    table, postcard, poster, pot, pottedplant, printer, projector, pumpkin, rabbit, racket,
    radiator, radio, rail, rake, ramp, range hood, receiver, recorder, recreational machines,
    remote control, road, robot, rock, rocket, rocking horse, rope, rug, ruler, runway, saddle,
    sand, saw, scale, scanner, scissors, scoop, screen, screwdriver, sculpture, scythe, sewer,
    sewing machine, shed, sheep, shell, shelves, shoe, shopping cart, shovel, sidecar, sidewalk,
    sign, signal light, sink, skateboard, ski, sky, sled, slippers, smoke, snail, snake, snow,
    snowmobiles, sofa, spanner, spatula, speaker, speed bump, spice container, spoon, sprayer,
    squirrel, stage, stair, stapler, stick, sticky note, stone, stool, stove, straw, stretcher,
    sun, sunglass, sunshade, surveillance camera, swan, sweeper, swim ring, swimming pool, swing,
    switch, table, tableware, tank, tap, tape, tarp, telephone, telephone booth, tent, tire,
    toaster, toilet, tong, tool, toothbrush, towel, toy, toy car, track, train, trampoline, trash
    bin, tray, tree, tricycle, tripod, trophy, truck, tube, turtle, tvmonitor, tweezers,
    typewriter, umbrella, unknown, vacuum cleaner, vending machine, video camera, video game
    console, video player, video tape, violin, wakeboard, wall, wallet, wardrobe, washing
    machine, watch, water, water dispenser, water pipe, water skate board, watermelon, whale,
    wharf, wheel, wheelchair, window, window blinds, wineglass, wire, wood, wool
""".split()
    ).split(', ')
)
_LARGEST = 65535  # LabelMap holds 16-bit numbers


def read_names(path: Path) -> dict[int, str]:
    """Read lines 'number: name'; names lose their spaces.

    Raises CaffeError if there is no such file or a line is of another form, or has a
    number again.
    """
    names = {}
    for line in read_list(path):
        number, _, name = line.partition(':')
        number, name = number.strip(), name.replace(' ', '')
        if not (number.isdecimal() and 1 <= int(number) <= _LARGEST and name):
            raise CaffeError(
                f"{path}: 'number: name' expected, the number from 1 to {_LARGEST}; "
                f'got {line[:80]!r}'
            )
        if int(number) in names:
            raise CaffeError(f'{path}: number {number} is both {names[int(number)]} and {name}')
        names[int(number)] = name
    return names


def read_table(context_dir: Path) -> dict[int, int]:
    """The class, 0..59, of every number that a LabelMap may hold.

    An annotation whose name is one of the 59 becomes its number in 59_labels.txt, all
    others 0; so does 0, which names nothing.

    Raises CaffeError if labels.txt lacks one of the 59, or 59_labels.txt numbers others
    than CLASSES or numbers them otherwise: weights and scores go by these numbers.
    """
    wanted = {number: ANNOTATED_AS.get(name, name) for number, name in enumerate(CLASSES) if number}
    path = context_dir / '59_labels.txt'
    found = {number: ANNOTATED_AS.get(name, name) for number, name in read_names(path).items()}
    for number in sorted({*wanted, *found}):
        if found.get(number) != wanted.get(number):
            raise CaffeError(
                f'{path}: number {number} is {found.get(number)}, {wanted.get(number)} expected'
            )
    path = context_dir / 'labels.txt'
    annotated = read_names(path)
    missing = [name for name in wanted.values() if name not in annotated.values()]
    if missing:
        raise CaffeError(f'{path}: lacks {", ".join(missing)} of the {len(wanted)} classes')
    classes = {name: number for number, name in wanted.items()}
    return {0: 0, **{number: classes.get(name, 0) for number, name in annotated.items()}}


class PASCALContextSegDataLayer(SegDataLayer):
    """Images of VOC 2010 and their PASCAL-Context labels.

    Tops: data, 1 x 3 x H x W float32, BGR minus mean; label, 1 x 1 x H x W float32, 0..59;
    nothing is void. param_str: voc_dir (the folder that holds VOC2010), context_dir,
    split, mean, seed, randomize.
    """

    def open(self, params: Params) -> list[str]:
        self._voc = Path(params.text('voc_dir')) / 'VOC2010'
        self._context = Path(params.text('context_dir'))
        self._mean = params.mean(MEAN)
        self._table = read_table(self._context)
        return read_list(self._voc / 'ImageSets' / 'Main' / f'{self.split}.txt')

    def load(self, name: str) -> tuple[np.ndarray, ...]:
        rgb = read_rgb(self._voc / 'JPEGImages' / f'{name}.jpg')
        path = self._context / 'trainval' / f'{name}.mat'
        labels = recoded(
            read_mat(path, 'LabelMap'), self._table, path, 'a number of labels.txt, or 0,'
        )
        return bgr_blob(rgb, self._mean), label_blob(labels, len(CLASSES), path, rgb)
