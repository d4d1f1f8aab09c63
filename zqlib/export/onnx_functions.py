"""The arithmetic of integer programs as ONNX functions, in ONNX's own notation.

Each computes what the function of the same name in `zqlib.integer` does, bit for bit, with
operators that ONNX Runtime has for integers on a CPU. Four things need care:

* Only unsigned integers can be shifted. Adding 2^63 to an int64 read as uint64 makes it
  non-negative and keeps its order; 2^63 is a multiple of 2^bits, so after the shift 2^63 >> bits is
  taken off again, and what remains is rounded toward minus infinity as an arithmetic shift does.
  Sums and products of uint64 are defined modulo 2^64, which is what a negative int64 read as uint64
  needs.
* `Div` truncates where the reference floors. Numerators here are not negative, but for that of a
  LayerNorm's ratio, which is lifted by a multiple of its divisor before the division.
* There is no logarithm: binary digits are counted by comparison with every power of two.
* A constant inside a function is a tensor of its own; ONNX Runtime folds all that depends on
  constants only when it loads the model, so that m and e can stay int32 and int8 in the file.

In the notation, `Cast <to = 13>` is to uint64, 7 to int64, 6 to int32 and 2 to uint8.
"""

from onnx import FunctionProto, parser

__all__ = ["DOMAIN", "OPSET", "integer_functions"]

DOMAIN = "zqlib"
OPSET = 18  # the first one with BitwiseAnd

_SHIFT_RIGHT = """ShiftRight (x, bits) => (y)
{
    sign = Constant <value = uint64 {9223372036854775808}> ()
    wrapped = Cast <to = 13> (x)
    raised = Add (wrapped, sign)
    shifted = BitShift <direction = "RIGHT"> (raised, bits)
    zero = BitShift <direction = "RIGHT"> (sign, bits)
    lowered = Sub (shifted, zero)
    y = Cast <to = 7> (lowered)
}"""

# One addition does for the rounding and for the 2^63 of a shift: six operators on the data.
_REQUANTIZE = """Requantize (x, m, e) => (y)
{
    one = Constant <value = uint64 {1}> ()
    sign = Constant <value = uint64 {9223372036854775808}> ()
    factor = Cast <to = 13> (m)
    bits = Cast <to = 13> (e)
    less = Sub (bits, one)
    half = BitShift <direction = "LEFT"> (one, less)
    rounding = Add (sign, half)
    zero = BitShift <direction = "RIGHT"> (sign, bits)
    wrapped = Cast <to = 13> (x)
    product = Mul (wrapped, factor)
    raised = Add (product, rounding)
    shifted = BitShift <direction = "RIGHT"> (raised, bits)
    lowered = Sub (shifted, zero)
    y = Cast <to = 7> (lowered)
}"""

_EXP2 = """Exp2 (x) => (y)
{
    sixteen = Constant <value = uint64 {16}> ()
    low = Constant <value = int64 {65535}> ()
    unit = Constant <value = int64 {65536}> ()
    b = Constant <value = int64 {21840}> ()
    c = Constant <value = int64 {10928}> ()
    one = Constant <value = int64 {1}> ()
    most = Constant <value = int64 {62}> ()
    full = Constant <value = int64 {2147483648}> ()
    whole = zqlib.ShiftRight (x, sixteen)
    fraction = BitwiseAnd (x, low)
    linear = Mul (fraction, b)
    squared = Mul (fraction, fraction)
    cut = Div (squared, unit)
    square = Mul (cut, c)
    terms = Add (linear, square)
    sum = Add (terms, full)
    halvings = Sub (one, whole)
    limited = Min (halvings, most)
    mantissa = Cast <to = 13> (sum)
    bits = Cast <to = 13> (limited)
    power = BitShift <direction = "RIGHT"> (mantissa, bits)
    y = Cast <to = 7> (power)
}"""

_SOFTMAX_WEIGHTS = """SoftmaxWeights (scores, m, e, attended) => (weights)
{
    keys = Constant <value = int64[1] {-1}> ()
    lowest = Constant <value = int32 {-2147483648}> ()
    least = Constant <value = int64 {-2147483648}> ()
    zero = Constant <value = int64 {0}> ()
    steps = Constant <value = int64 {255}> ()
    half = Constant <value = int64 {536870912}> ()
    one = Constant <value = int64 {1073741824}> ()
    only = Where (attended, scores, lowest)
    top = ReduceMax (only, keys)
    wide = Cast <to = 7> (scores)
    highest = Cast <to = 7> (top)
    difference = Sub (wide, highest)
    below = Clip (difference, least, zero)
    exponent = zqlib.Requantize (below, m, e)
    all = zqlib.Exp2 (exponent)
    powers = Where (attended, all, zero)
    scaled = Mul (powers, steps)
    raised = Add (scaled, half)
    quotient = Div (raised, one)
    weights = Cast <to = 2> (quotient)
}"""

_WEIGHTED_MEAN = """WeightedMean (sums, weights) => (y)
{
    keys = Constant <value = int64[1] {-1}> ()
    steps = Constant <value = int64 {510}> ()
    two = Constant <value = int64 {2}> ()
    most = Constant <value = int64 {32768}> ()
    wide = Cast <to = 7> (weights)
    total = ReduceSum (wide, keys)
    double = Mul (total, two)
    products = Cast <to = 7> (sums)
    scaled = Mul (products, steps)
    raised = Add (scaled, total)
    offset = Mul (double, most)
    positive = Add (raised, offset)
    quotient = Div (positive, double)
    mean = Sub (quotient, most)
    y = Cast <to = 6> (mean)
}"""

_LOGISTIC = """Logistic (x, m, e) => (y)
{
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1073741824}> ()
    square = Constant <value = int64 {1152921504606846976}> ()
    wide = Cast <to = 7> (x)
    size = Abs (wide)
    negative = Neg (size)
    exponent = zqlib.Requantize (negative, m, e)
    power = zqlib.Exp2 (exponent)
    sum = Add (power, one)
    upper = Div (square, sum)
    lower = Sub (one, upper)
    positive = GreaterOrEqual (wide, zero)
    y = Where (positive, upper, lower)
}"""

_SIGMOID = """Sigmoid (x, m, e, high) => (y)
{
    half = Constant <value = int64 {536870912}> ()
    one = Constant <value = int64 {1073741824}> ()
    share = zqlib.Logistic (x, m, e)
    scaled = Mul (share, high)
    raised = Add (scaled, half)
    y = Div (raised, one)
}"""

_SWISH = """Swish (x, m, e, gain_m, gain_e, zero) => (y)
{
    bits = Constant <value = uint64 {15}> ()
    share = zqlib.Logistic (x, m, e)
    wide = Cast <to = 7> (x)
    product = Mul (wide, share)
    cut = zqlib.ShiftRight (product, bits)
    steps = zqlib.Requantize (cut, gain_m, gain_e)
    y = Add (steps, zero)
}"""

_BINARY_DIGITS = """BinaryDigits (x) => (digits)
{
    channels = Constant <value = int64[1] {1}> ()
    start = Constant <value = int64 {0}> ()
    end = Constant <value = int64 {63}> ()
    step = Constant <value = int64 {1}> ()
    column = Constant <value = int64[3] {1, 63, 1}> ()
    one = Constant <value = uint64 {1}> ()
    exponents = Range (start, end, step)
    bits = Cast <to = 13> (exponents)
    unsigned = BitShift <direction = "LEFT"> (one, bits)
    row = Cast <to = 7> (unsigned)
    powers = Reshape (row, column)
    reached = GreaterOrEqual (x, powers)
    ones = Cast <to = 7> (reached)
    digits = ReduceSum (ones, channels)
}"""

_NEWTON_STEP = """NewtonStep (x, root) => (better)
{
    two = Constant <value = int64 {2}> ()
    one = Constant <value = int64 {1}> ()
    quotient = Div (x, root)
    sum = Add (root, quotient)
    half = Div (sum, two)
    better = Max (half, one)
}"""

# For x >= 1; the first root is above the true one and at most twice as large.
_SQUARE_ROOT = """SquareRoot (x) => (root)
{
    one = Constant <value = int64 {1}> ()
    two = Constant <value = int64 {2}> ()
    bit = Constant <value = uint64 {1}> ()
    digits = zqlib.BinaryDigits (x)
    more = Add (digits, one)
    half = Div (more, two)
    bits = Cast <to = 13> (half)
    first = BitShift <direction = "LEFT"> (bit, bits)
    root0 = Cast <to = 7> (first)
    root1 = zqlib.NewtonStep (x, root0)
    root2 = zqlib.NewtonStep (x, root1)
    root3 = zqlib.NewtonStep (x, root2)
    root4 = zqlib.NewtonStep (x, root3)
    root5 = zqlib.NewtonStep (x, root4)
    root6 = zqlib.NewtonStep (x, root5)
    square = Mul (root6, root6)
    above = Greater (square, x)
    excess = Cast <to = 7> (above)
    root = Sub (root6, excess)
}"""

# |deviation| * 2^5 <= root + 1, so the lifted numerator is not negative.
_LAYER_NORM = """LayerNorm (x, channels, m, e, offset, eps) => (y)
{
    axis = Constant <value = int64[1] {1}> ()
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    two = Constant <value = int64 {2}> ()
    bit = Constant <value = uint64 {1}> ()
    kept = Constant <value = int64 {19}> ()
    most = Constant <value = int64 {62}> ()
    squared_step = Constant <value = int64 {1024}> ()
    digit = Constant <value = int64 {34359738368}> ()
    lift = Constant <value = int64 {4294967296}> ()
    wide = Cast <to = 7> (x)
    sum = ReduceSum (wide, axis)
    scaled = Mul (wide, channels)
    exact = Sub (scaled, sum)
    size = Abs (exact)
    largest = ReduceMax (size, axis)
    digits = zqlib.BinaryDigits (largest)
    excess = Sub (digits, kept)
    beyond = Max (excess, zero)
    bits = Cast <to = 13> (beyond)
    last = BitShift <direction = "LEFT"> (bit, bits)
    unsigned_half = BitShift <direction = "RIGHT"> (last, bit)
    half = Cast <to = 7> (unsigned_half)
    raised = Add (exact, half)
    deviation = zqlib.ShiftRight (raised, bits)
    twice = Mul (beyond, two)
    limited = Min (twice, most)
    eps_bits = Cast <to = 13> (limited)
    unsigned_eps = Cast <to = 13> (eps)
    shifted_eps = BitShift <direction = "RIGHT"> (unsigned_eps, eps_bits)
    eps_in_steps = Cast <to = 7> (shifted_eps)
    squares = Mul (deviation, deviation)
    variance = ReduceSum (squares, axis)
    with_eps = Add (variance, eps_in_steps)
    total = Max (with_eps, one)
    radicand = Mul (total, squared_step)
    root = zqlib.SquareRoot (radicand)
    numerator = Mul (deviation, digit)
    above = Mul (root, lift)
    lifted = Add (numerator, above)
    quotient = Div (lifted, root)
    ratio = Sub (quotient, lift)
    factor = Cast <to = 7> (m)
    product = Mul (ratio, factor)
    shift = Cast <to = 13> (e)
    less = Sub (shift, bit)
    unsigned_rounding = BitShift <direction = "LEFT"> (bit, less)
    rounding = Cast <to = 7> (unsigned_rounding)
    constant = Add (offset, rounding)
    affine = Add (product, constant)
    y = zqlib.ShiftRight (affine, shift)
}"""


def integer_functions() -> list[FunctionProto]:
    """Definitions of the operators of `DOMAIN`, for a model of opset `OPSET`.

    * ShiftRight (x int64, bits uint64 below 64): floor(x / 2^bits), int64.
    * Requantize (x of any integer type, m int32, e int8): round(x * m * 2^-e), int64.
    * Exp2, SoftmaxWeights, Logistic, Sigmoid, Swish: see `zqlib.integer.nonlinear`; Swish adds its
      zero.
    * WeightedMean (sums int32, weights uint8): see `zqlib.integer.attention`, int32. ONNX divides
      towards zero, so a multiple of the divisor makes the numerator positive.
    * BinaryDigits, NewtonStep, SquareRoot (x int64 (batch, 1, frames)): int64.
    * LayerNorm (x (batch, channels, frames), channels int64, m int32, e int8, offset int64, eps
      int64): int64, not clamped.
    """
    texts = (_SHIFT_RIGHT, _REQUANTIZE, _EXP2, _SOFTMAX_WEIGHTS, _WEIGHTED_MEAN,
             _LOGISTIC, _SIGMOID, _SWISH,
             _BINARY_DIGITS, _NEWTON_STEP, _SQUARE_ROOT, _LAYER_NORM)  # fmt: skip
    header = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}, "{DOMAIN}": 1]>\n'
    return [parser.parse_function(header + text) for text in texts]
