package figure

import (
	"image/color"
	"math"
	"os"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Axis is one of a figure's two.
type Axis struct {
	Label    string
	Log      bool
	Min, Max float64 // both 0 are the data's
}

// Curve is a line by a formula.
type Curve struct {
	Name   string
	Points [][2]float64
	Like   int // number of its colour
	Dashed bool
}

// Points are measurements with their confidence intervals.
type Points struct {
	Name   string
	Rows   []Row
	Like   int // number of their colour: a curve's that they belong to
	Hollow bool
}

// Plot is a figure.
type Plot struct {
	Title  string
	X, Y   Axis
	Curves []Curve
	Points []Points

	LegendLeft, LegendBottom bool // where the lines leave room; else at the right and the top
}

// Told apart by those who see few colours, and in print.
var colours = []color.RGBA{
	{0x00, 0x5a, 0xb5, 0xff}, {0xd5, 0x5e, 0x00, 0xff}, {0x00, 0x8a, 0x60, 0xff}, {0x9a, 0x3d, 0x8c, 0xff}, {0x55, 0x55, 0x55, 0xff},
}

// intervals are rows as gonum/plot wants points with error bars.
type intervals []Row

func (v intervals) Len() int                { return len(v) }
func (v intervals) XY(i int) (x, y float64) { return v[i].X, v[i].Mean }
func (v intervals) YError(i int) (low, up float64) {
	return v[i].Mean - v[i].Low, v[i].High - v[i].Mean
}

// Draw writes the figure as an SVG.
func (f Plot) Draw(path string) error {
	p := plot.New()
	p.Title.Text = f.Title
	p.Title.Padding = vg.Points(6)
	p.Legend.Top, p.Legend.Left = !f.LegendBottom, f.LegendLeft
	p.Legend.YOffs = vg.Points(4)
	if p.Legend.Top {
		p.Legend.YOffs = -p.Legend.YOffs
	}
	p.Legend.Padding = vg.Points(2)
	p.Legend.XOffs = -vg.Points(4)
	if p.Legend.Left {
		p.Legend.XOffs = -p.Legend.XOffs
	}
	p.Add(plotter.NewGrid())
	for _, c := range f.Curves {
		if err := addCurve(p, c); err != nil {
			return err
		}
	}
	for _, m := range f.Points {
		if err := addPoints(p, m); err != nil {
			return err
		}
	}
	shape(&p.X, f.X)
	shape(&p.Y, f.Y)
	canvas := vgsvg.New(20*vg.Centimeter, 15*vg.Centimeter)
	// gonum/plot reckons with neither half of the last number nor a legend at the edge.
	p.Draw(draw.Crop(draw.New(canvas), vg.Points(4), -vg.Points(14), vg.Points(4), -vg.Points(4)))
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := canvas.WriteTo(file); err != nil {
		return err
	}
	return file.Close()
}

func addCurve(p *plot.Plot, c Curve) error {
	points := make(plotter.XYs, len(c.Points))
	for i, xy := range c.Points {
		points[i].X, points[i].Y = xy[0], xy[1]
	}
	line, err := plotter.NewLine(points)
	if err != nil {
		return err
	}
	line.Color = colours[c.Like%len(colours)]
	line.Width = vg.Points(1.2)
	if c.Dashed {
		line.Dashes = []vg.Length{vg.Points(5), vg.Points(3)}
	}
	p.Add(line)
	if c.Name != "" {
		p.Legend.Add(c.Name, line)
	}
	return nil
}

func addPoints(p *plot.Plot, m Points) error {
	rows := slices.Clone(m.Rows)
	if len(rows) == 0 {
		return nil
	}
	scatter, err := plotter.NewScatter(intervals(rows))
	if err != nil {
		return err
	}
	scatter.Color = colours[m.Like%len(colours)]
	scatter.Radius = vg.Points(3)
	scatter.Shape = draw.CrossGlyph{}
	if m.Hollow {
		scatter.Shape = draw.RingGlyph{}
		scatter.Radius = vg.Points(4)
	}
	bars, err := plotter.NewYErrorBars(intervals(rows))
	if err != nil {
		return err
	}
	bars.Color = scatter.Color
	p.Add(bars, scatter)
	p.Legend.Add(m.Name, scatter)
	return nil
}

func shape(axis *plot.Axis, a Axis) {
	axis.Label.Text = a.Label
	if a.Max > a.Min {
		axis.Min, axis.Max = a.Min, a.Max
	}
	if a.Log {
		axis.Scale = plot.LogScale{}
		axis.Tick.Marker = plot.LogTicks{Prec: -1}
		axis.Min = math.Max(axis.Min, math.SmallestNonzeroFloat64)
	}
}
