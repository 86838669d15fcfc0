"""How each kind of object is drawn: a few shapes in a box of 100 x 100 units."""

from collections.abc import Callable
from dataclasses import dataclass

from mfpo.picturebook.pen import Pen


@dataclass(frozen=True)
class Kind:
    """A COCO category as the picture book draws it; `flies` puts it into the sky."""

    name: str
    colours: tuple[str, ...]
    draw: Callable[[Pen], None]
    flies: bool = False


KINDS: dict[str, Kind] = {}


def kind(name: str, colours: str, flies: bool = False) -> Callable[[Callable[[Pen], None]], Callable[[Pen], None]]:
    """Register a drawing under its COCO category, with the colours it comes in, the commonest first."""

    def add(draw: Callable[[Pen], None]) -> Callable[[Pen], None]:
        KINDS[name] = Kind(name, tuple(colours.split()), draw, flies)
        return draw

    return add


@kind("person", "blue red green purple")
def _person(pen: Pen) -> None:
    pen.line(42, 60, 36, 98, width=11, fill="ink")
    pen.line(58, 60, 64, 98, width=11, fill="ink")
    pen.line(38, 36, 18, 58, width=9, fill="skin")
    pen.line(62, 36, 82, 58, width=9, fill="skin")
    pen.box(34, 30, 66, 68, round=8)
    pen.oval(36, 2, 64, 32, fill="skin")
    pen.shape(36, 14, 40, 4, 60, 4, 64, 14, fill="ink")


@kind("dog", "brown black white")
def _dog(pen: Pen) -> None:
    pen.line(16, 50, 3, 26, width=8)
    for x in (20, 32, 58, 70):
        pen.box(x, 62, x + 9, 96)
    pen.oval(12, 40, 80, 74)
    pen.oval(60, 16, 92, 54)
    pen.box(80, 32, 99, 47, round=6)
    pen.shape(62, 18, 54, 50, 70, 44, fill="ink")
    pen.oval(77, 26, 83, 32, fill="ink")
    pen.oval(93, 30, 100, 38, fill="ink")


@kind("cat", "gray black brown")
def _cat(pen: Pen) -> None:
    pen.ring(66, 52, 98, 92, width=8)
    pen.oval(24, 44, 78, 98)
    pen.shape(26, 34, 24, 2, 46, 16)
    pen.shape(74, 34, 76, 2, 54, 16)
    pen.oval(24, 10, 76, 56)
    pen.oval(34, 26, 44, 38, fill="yellow")
    pen.oval(56, 26, 66, 38, fill="yellow")
    pen.shape(46, 40, 54, 40, 50, 46, fill="ink")


@kind("horse", "brown black white")
def _horse(pen: Pen) -> None:
    pen.line(14, 46, 4, 82, width=10, fill="ink")
    for x in (16, 28, 56, 68):
        pen.box(x, 58, x + 7, 98)
    pen.oval(10, 36, 78, 68)
    pen.shape(58, 50, 70, 4, 86, 10, 80, 56)
    pen.shape(70, 4, 98, 26, 92, 34, 74, 24)
    pen.line(60, 44, 68, 4, width=7, fill="ink")


@kind("cow", "white brown")
def _cow(pen: Pen) -> None:
    for x in (14, 26, 58, 70):
        pen.box(x, 62, x + 9, 94)
    pen.box(8, 30, 82, 70, round=14)
    pen.oval(16, 34, 38, 56, fill="ink")
    pen.oval(46, 42, 66, 64, fill="ink")
    pen.box(70, 20, 98, 54, round=9)
    pen.box(76, 42, 100, 56, fill="orange", round=5)
    pen.line(72, 22, 66, 6, width=6, fill="yellow")
    pen.line(94, 22, 99, 6, width=6, fill="yellow")
    pen.oval(79, 28, 86, 35, fill="ink")


@kind("sheep", "white black")
def _sheep(pen: Pen) -> None:
    for x in (26, 40, 58, 70):
        pen.box(x, 66, x + 6, 96, fill="ink")
    for x, y in ((8, 34), (22, 22), (40, 20), (56, 26), (10, 48), (28, 50), (48, 50), (60, 44), (34, 36)):
        pen.oval(x, y, x + 30, y + 28)
    pen.oval(72, 26, 98, 60, fill="wood")
    pen.oval(82, 36, 88, 42, fill="ink")


@kind("bird", "blue red yellow", flies=True)
def _bird(pen: Pen) -> None:
    pen.shape(6, 30, 52, 42, 40, 62)
    pen.shape(94, 12, 66, 52, 40, 46)
    pen.shape(30, 4, 66, 46, 44, 54)
    pen.oval(28, 40, 76, 68)
    pen.oval(64, 36, 88, 60)
    pen.shape(86, 46, 100, 52, 86, 56, fill="orange")
    pen.shape(32, 50, 6, 70, 18, 76, 38, 62)
    pen.oval(76, 42, 82, 48, fill="ink")


@kind("airplane", "white red blue", flies=True)
def _airplane(pen: Pen) -> None:
    pen.shape(4, 20, 18, 20, 30, 50, 8, 50)
    pen.box(4, 40, 96, 62, round=11)
    pen.shape(44, 52, 66, 52, 40, 94, 26, 94, fill="steel")
    pen.shape(46, 42, 62, 42, 44, 14, 34, 14, fill="steel")
    for x in (34, 46, 58, 70):
        pen.oval(x, 45, x + 7, 52, fill="glass")


@kind("kite", "red purple yellow", flies=True)
def _kite(pen: Pen) -> None:
    pen.shape(50, 2, 86, 34, 50, 70, 14, 34)
    pen.shape(50, 2, 86, 34, 50, 34, fill="white")
    pen.shape(50, 70, 14, 34, 50, 34, fill="white")
    pen.line(50, 68, 38, 80, 56, 88, 44, 99, width=5, fill="ink")


@kind("car", "red blue yellow white")
def _car(pen: Pen) -> None:
    pen.shape(20, 50, 34, 26, 70, 26, 86, 50)
    pen.shape(29, 48, 38, 32, 50, 32, 50, 48, fill="glass")
    pen.shape(55, 48, 55, 32, 67, 32, 76, 48, fill="glass")
    pen.box(3, 46, 97, 72, round=9)
    for x in (14, 64):
        pen.oval(x, 60, x + 22, 82, fill="ink")
        pen.oval(x + 7, 67, x + 15, 75, fill="steel")


@kind("bus", "red yellow green")
def _bus(pen: Pen) -> None:
    pen.box(2, 12, 98, 80, round=7)
    for x in (8, 27, 46, 65):
        pen.box(x, 22, x + 15, 42, fill="glass")
    pen.box(84, 22, 96, 66, fill="glass")
    pen.box(2, 52, 82, 58, fill="white")
    for x in (14, 62):
        pen.oval(x, 68, x + 22, 90, fill="ink")


@kind("truck", "blue green white")
def _truck(pen: Pen) -> None:
    pen.box(2, 16, 60, 74, fill="steel")
    for y in (28, 42, 56):
        pen.box(6, y, 56, y + 4, fill="gray")
    pen.shape(62, 74, 62, 32, 82, 32, 98, 54, 98, 74)
    pen.shape(68, 52, 68, 38, 80, 38, 90, 52, fill="glass")
    for x in (8, 34, 72):
        pen.oval(x, 64, x + 22, 86, fill="ink")


@kind("bicycle", "green red blue")
def _bicycle(pen: Pen) -> None:
    pen.ring(2, 44, 44, 88, width=6, fill="ink")
    pen.ring(56, 44, 98, 88, width=6, fill="ink")
    pen.line(23, 66, 36, 34, 68, 34, 77, 66, width=7)
    pen.line(23, 66, 52, 66, 68, 34, width=7)
    pen.line(52, 66, 34, 26, width=7)
    pen.line(68, 34, 66, 18, 82, 16, width=6, fill="ink")
    pen.box(24, 20, 46, 28, fill="ink", round=3)


@kind("boat", "white red blue")
def _boat(pen: Pen) -> None:
    pen.shape(2, 62, 98, 62, 80, 92, 20, 92)
    pen.box(46, 4, 51, 62, fill="wood")
    pen.shape(54, 6, 92, 54, 54, 54, fill="yellow")
    pen.shape(43, 14, 43, 54, 14, 54, fill="orange")


@kind("surfboard", "yellow pink purple")
def _surfboard(pen: Pen) -> None:
    pen.oval(32, 1, 68, 99)
    pen.box(47, 4, 53, 96, fill="white")
    pen.box(36, 60, 64, 68, fill="ink")


@kind("umbrella", "red purple green")
def _umbrella(pen: Pen) -> None:
    pen.box(47, 10, 53, 90, fill="wood")
    pen.line(50, 88, 50, 95, 62, 95, 62, 86, width=5, fill="wood")
    pen.canvas.pieslice(pen._xy((2, 6, 98, 100)), 180, 360, fill=pen._rgb("main"))
    pen.shape(50, 6, 34, 53, 66, 53, fill="white")


@kind("traffic light", "black gray yellow")
def _traffic_light(pen: Pen) -> None:
    pen.box(44, 66, 56, 99, fill="steel")
    pen.box(28, 2, 72, 72, round=10)
    pen.oval(40, 6, 60, 26, fill="red")
    pen.oval(40, 27, 60, 47, fill="orange")
    pen.oval(40, 48, 60, 68, fill="leaf")


@kind("stop sign", "red")
def _stop_sign(pen: Pen) -> None:
    pen.box(46, 56, 54, 99, fill="steel")
    pen.shape(36, 2, 64, 2, 84, 22, 84, 48, 64, 68, 36, 68, 16, 48, 16, 22, fill="white")
    pen.shape(38, 7, 62, 7, 79, 24, 79, 46, 62, 63, 38, 63, 21, 46, 21, 24)
    pen.box(28, 29, 72, 41, fill="white")


@kind("fire hydrant", "red yellow")
def _fire_hydrant(pen: Pen) -> None:
    pen.box(26, 86, 74, 98, round=3)
    pen.box(34, 30, 66, 90)
    pen.oval(34, 12, 66, 48)
    pen.box(46, 4, 54, 18)
    pen.box(16, 48, 84, 64, round=4)
    pen.oval(40, 46, 60, 66, fill="steel")


@kind("bench", "brown green gray")
def _bench(pen: Pen) -> None:
    for y in (22, 36, 54):
        pen.box(2, y, 98, y + 9, round=2)
    for x in (10, 82):
        pen.box(x, 22, x + 8, 86, fill="ink")


@kind("frisbee", "pink blue purple")
def _frisbee(pen: Pen) -> None:
    pen.oval(6, 28, 94, 76)
    pen.oval(22, 36, 78, 64, fill="white")
    pen.oval(32, 42, 68, 60)


@kind("couch", "blue brown red")
def _couch(pen: Pen) -> None:
    pen.box(12, 20, 88, 64, round=10)
    pen.box(2, 40, 20, 82, round=8)
    pen.box(80, 40, 98, 82, round=8)
    pen.box(18, 56, 82, 80)
    pen.box(49, 22, 51, 60, fill="ink")
    for x in (10, 82):
        pen.box(x, 82, x + 8, 92, fill="wood")


@kind("tv", "black gray")
def _tv(pen: Pen) -> None:
    pen.box(2, 14, 98, 74, round=4)
    pen.box(8, 20, 92, 68, fill="glass")
    pen.shape(8, 68, 36, 36, 56, 58, 70, 46, 92, 68, fill="leaf")
    pen.shape(40, 74, 60, 74, 70, 90, 30, 90, fill="ink")


@kind("clock", "white yellow green")
def _clock(pen: Pen) -> None:
    pen.oval(8, 8, 92, 92, fill="ink")
    pen.oval(16, 16, 84, 84)
    pen.line(50, 50, 50, 24, width=6, fill="ink")
    pen.line(50, 50, 70, 58, width=6, fill="ink")


@kind("potted plant", "brown white blue")
def _potted_plant(pen: Pen) -> None:
    for x, y in ((8, 24), (22, 2), (44, 2), (58, 24), (32, 22)):
        pen.oval(x, y, x + 34, y + 38, fill="leaf")
    pen.shape(24, 58, 76, 58, 66, 98, 34, 98)
    pen.box(20, 54, 80, 66)


@kind("bed", "purple blue white")
def _bed(pen: Pen) -> None:
    pen.box(2, 24, 10, 90, fill="wood")
    pen.box(90, 48, 98, 90, fill="wood")
    pen.box(8, 52, 92, 78)
    pen.box(12, 40, 36, 56, fill="white", round=6)
    pen.box(6, 74, 94, 82, fill="wood")


@kind("teddy bear", "brown white")
def _teddy_bear(pen: Pen) -> None:
    for x in (22, 58):
        pen.oval(x, 2, x + 20, 22)
        pen.oval(x - 4, 74, x + 24, 98)
    pen.oval(6, 48, 34, 66)
    pen.oval(66, 48, 94, 66)
    pen.oval(26, 42, 74, 92)
    pen.oval(24, 8, 76, 52)
    pen.oval(38, 60, 62, 84, fill="yellow")
    pen.oval(40, 30, 60, 46, fill="yellow")
    for x in (35, 58):
        pen.oval(x, 22, x + 8, 30, fill="ink")
    pen.oval(46, 32, 54, 39, fill="ink")


@kind("laptop", "gray black white")
def _laptop(pen: Pen) -> None:
    pen.box(16, 14, 84, 64, round=4)
    pen.box(22, 20, 78, 58, fill="blue")
    pen.shape(12, 66, 88, 66, 99, 86, 1, 86)
    pen.shape(22, 69, 78, 69, 84, 78, 16, 78, fill="ink")


@kind("book", "green red purple")
def _book(pen: Pen) -> None:
    pen.shape(2, 26, 50, 36, 98, 26, 98, 80, 50, 90, 2, 80)
    pen.shape(8, 22, 48, 32, 48, 82, 8, 72, fill="white")
    pen.shape(92, 22, 52, 32, 52, 82, 92, 72, fill="white")
    for y in (40, 52, 64):
        pen.line(16, y - 6, 42, y, width=3, fill="ink")
        pen.line(84, y - 6, 58, y, width=3, fill="ink")


@kind("cup", "white red green")
def _cup(pen: Pen) -> None:
    pen.ring(60, 36, 98, 74, width=9)
    pen.box(12, 22, 74, 90, round=12)
    pen.oval(12, 14, 74, 34, fill="wood")
    pen.line(34, 2, 30, 12, width=4, fill="steel")
    pen.line(52, 2, 48, 12, width=4, fill="steel")


@kind("bowl", "blue white yellow")
def _bowl(pen: Pen) -> None:
    pen.canvas.pieslice(pen._xy((4, -4, 96, 88)), 0, 180, fill=pen._rgb("main"))
    pen.oval(4, 32, 96, 52, fill="orange")
    pen.box(34, 84, 66, 92)


@kind("bottle", "green blue")
def _bottle(pen: Pen) -> None:
    pen.box(42, 2, 58, 34)
    pen.box(40, 2, 60, 10, fill="ink")
    pen.box(30, 28, 70, 98, round=12)
    pen.box(30, 52, 70, 76, fill="white")


@kind("banana", "yellow")
def _banana(pen: Pen) -> None:
    pen.canvas.chord(pen._xy((4, -30, 104, 88)), 30, 165, fill=pen._rgb("main"))
    pen.line(6, 38, 12, 54, width=10, fill="wood")
    pen.line(94, 56, 98, 50, width=8, fill="ink")


@kind("refrigerator", "white gray")
def _refrigerator(pen: Pen) -> None:
    pen.box(22, 2, 78, 98, round=5)
    pen.box(22, 36, 78, 39, fill="ink")
    pen.box(66, 14, 71, 30, fill="ink")
    pen.box(66, 46, 71, 68, fill="ink")


@kind("oven", "gray black")
def _oven(pen: Pen) -> None:
    pen.box(8, 10, 92, 94, round=4)
    for x in (16, 36, 56, 76):
        pen.oval(x, 15, x + 10, 25, fill="red")
    pen.box(18, 42, 82, 84, fill="orange", round=4)
    pen.box(18, 32, 82, 38, fill="white")
