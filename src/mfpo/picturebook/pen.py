"""The pen and the colours that the picture book is drawn with."""

from PIL import Image, ImageDraw

RGB = {
    "red": (214, 40, 40),
    "pink": (240, 130, 170),
    "yellow": (250, 215, 60),
    "green": (50, 150, 60),
    "blue": (45, 95, 200),
    "purple": (140, 70, 170),
    "brown": (135, 85, 45),
    "black": (40, 40, 45),
    "white": (245, 245, 245),
    "gray": (140, 145, 150),
    # Not named in any caption: details. Orange is none of the colours above, since CHAIR takes it for the fruit.
    "orange": (245, 140, 30),
    "ink": (30, 30, 35),
    "glass": (185, 220, 240),
    "leaf": (70, 165, 70),
    "wood": (165, 110, 60),
    "steel": (175, 180, 190),
    "skin": (240, 195, 160),
}


class Pen:
    """Draws in units of a hundredth of the sprite's side; `main` is the object's own colour."""

    def __init__(self, side: int, main: str) -> None:
        self.scale = side / 100
        self.main = main
        self.image = Image.new("RGBA", (side, side))
        self.canvas = ImageDraw.Draw(self.image)

    def _xy(self, numbers: tuple[float, ...]) -> list[float]:
        return [number * self.scale for number in numbers]

    def oval(self, *box: float, fill: str = "main") -> None:
        self.canvas.ellipse(self._xy(box), fill=self._rgb(fill))

    def box(self, *box: float, fill: str = "main", round: float = 0) -> None:
        self.canvas.rounded_rectangle(self._xy(box), radius=round * self.scale, fill=self._rgb(fill))

    def shape(self, *points: float, fill: str = "main") -> None:
        self.canvas.polygon(self._xy(points), fill=self._rgb(fill))

    def line(self, *points: float, width: float = 6, fill: str = "main") -> None:
        self.canvas.line(self._xy(points), fill=self._rgb(fill), width=round(width * self.scale), joint="curve")

    def ring(self, *box: float, width: float = 6, fill: str = "main") -> None:
        self.canvas.ellipse(self._xy(box), outline=self._rgb(fill), width=round(width * self.scale))

    def _rgb(self, name: str) -> tuple[int, int, int]:
        return RGB[self.main if name == "main" else name]
