"""Small images of every kind that scripts/check-pillow.py compares with Pillow, made here: formats, pixel layouts, orientations, oddities."""
import io, itertools, struct, zlib

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 37, 23
SEED = 18


def picture(width=WIDTH, height=HEIGHT, channels=3):
    """Smooth colours with some noise: lossy formats keep it nearly."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 5 + 20, y * 8 + 30, 200 - x * 2 - y, x * 3 + y * 4][:channels]
    noise = np.random.default_rng(SEED).integers(0, 6, (height, width, channels))
    return (np.stack(planes, axis=2) + noise).clip(0, 255).astype(np.uint8)


def saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


# EXIF and XMP -------------------------------------------------------------------------------------------------------------------------------


def exif(*values, order="<", kind=3, magic=42, count=1):
    """A TIFF structure whose first directory holds an orientation for each of `values`."""
    width = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}.get(kind)
    block = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", magic, 8, len(values))
    for value in values:
        if kind == 2:
            data = str(value).encode() + b"\0\0\0"
        elif kind == 5:
            data = struct.pack(order + "I", 8 + 2 + 12 * len(values) + 4)
        elif kind == 11:
            data = struct.pack(order + "f", value)
        else:
            data = struct.pack(order + width, value) + b"\0\0\0"
        block += struct.pack(order + "HHI", 0x112, kind, count) + data[:4]
    block += struct.pack(order + "I", 0)
    return block + (struct.pack(order + "II", values[0], 1) if kind == 5 else b"")


def xmp(value, element=False):
    inner = f"<tiff:Orientation>{value}</tiff:Orientation>" if element else ""
    attribute = "" if element else f' tiff:Orientation="{value}"'
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"{attribute}>{inner}</rdf:Description></rdf:RDF></x:xmpmeta>'
    ).encode()


# Formats put together by hand ---------------------------------------------------------------------------------------------------------------


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(rows, width, height, depth, color, before=b"", after=b""):
    """A PNG of packed rows, with more chunks before and after the pixels."""
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + after + chunk(b"IEND", b"")


def png(before=b"", after=b""):
    pixels = picture()
    return png_of([row.tobytes() for row in pixels], WIDTH, HEIGHT, 8, 2, before, after)


def profile(block):
    return b"\nexif\n%8d\n" % len(block) + b"\n".join(block.hex().encode()[i : i + 72] for i in range(0, len(block) * 2, 72)) + b"\n"


def text(key, value):
    return chunk(b"tEXt", key + b"\0" + value)


def ztext(key, value):
    return chunk(b"zTXt", key + b"\0\0" + zlib.compress(value))


def itext(key, value, compressed=False):
    return chunk(b"iTXt", key + b"\0" + bytes([compressed, 0]) + b"\0\0" + (zlib.compress(value) if compressed else value))


def jpeg(*segments):
    plain = saved(Image.fromarray(picture()), "JPEG", quality=95, subsampling=0)
    return plain[:2] + b"".join(struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data for marker, data in segments) + plain[2:]


def riff(extra, flags=None):
    """A lossless WebP in the extended form, with more chunks."""
    plain = saved(Image.fromarray(picture()), "WEBP", lossless=True)
    known = {b"EXIF": 8, b"XMP ": 4}
    flags = sum(known.get(name, 0) for name in dict(extra)) if flags is None else flags
    body = b"VP8X" + struct.pack("<II", 10, flags) + struct.pack("<I", WIDTH - 1)[:3] + struct.pack("<I", HEIGHT - 1)[:3] + plain[12:]
    for name, data in extra:
        body += name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def lzw(indices, bits=8):
    """GIF's compression without compression: a clear code before the codes get longer."""
    clear, codes = 1 << bits, []
    for number, index in enumerate(indices):
        if number % ((1 << bits) - 2) == 0:
            codes.append(clear)
        codes.append(int(index))
    codes.append(clear + 1)
    value = sum(code << (bits + 1) * place for place, code in enumerate(codes))
    data = value.to_bytes((len(codes) * (bits + 1) + 7) // 8, "little")
    return bytes([bits]) + b"".join(bytes([len(part)]) + part for part in (data[i : i + 255] for i in range(0, len(data), 255))) + b"\0"


def gif(screen, frame, background=0, transparent=None, palette=None, local=None, version=b"GIF89a", fill=None):
    left, top, width, height = frame
    table = lambda colors: bytes(itertools.chain.from_iterable(colors))
    bits = lambda colors: max((len(colors) - 1).bit_length(), 1) - 1
    padded = lambda colors: list(colors) + [(0, 0, 0)] * (2 ** (bits(colors) + 1) - len(colors))
    out = version + struct.pack("<HHBBB", *screen, 0x80 | bits(palette) if palette else 0, background, 0)
    out += table(padded(palette)) if palette else b""
    if transparent is not None:
        out += b"!\xf9\x04" + struct.pack("<BHB", 1, 0, transparent) + b"\0"
    out += b"," + struct.pack("<HHHHB", left, top, width, height, 0x80 | bits(local) if local else 0) + (table(padded(local)) if local else b"")
    indices = fill if fill is not None else [(x + 2 * y) % 5 for y in range(height) for x in range(width)]
    return out + lzw(indices) + b";"


PALETTE = [(200, 30, 40), (20, 180, 60), (10, 70, 220), (240, 240, 20), (128, 64, 192)]


def bmp(bits, rows, palette=b"", compression=0, masks=b"", top_down=False, header=40):
    height = len(rows)
    pixels = b"".join(row + b"\0" * (-len(row) % 4) for row in (rows if top_down else rows[::-1])) if compression != 1 else rows[0]
    height = HEIGHT
    if header == 12:
        info = struct.pack("<IHHHH", 12, WIDTH, height, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", header, WIDTH, -height if top_down else height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
        info += masks + b"\0" * (header - 40 - len(masks) if header > 40 else 0)
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + palette + pixels


SIZES = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q", 7: "B"}


def tiff(data, bits, photometric, order="<", big=False, tile=None, rows_per_strip=None, planar=False, strips=None, size=None, **tags):
    """A TIFF of samples (bytes of one chunk each in `strips`, or all of `data` in one), with any tags by number as `t256=(type, values)`."""
    width, height = size or (WIDTH, HEIGHT)
    strips = strips or [data]
    fields = {256: (4, [width]), 257: (4, [height]), 258: (3, bits), 259: (3, [1]), 262: (3, [photometric]), 277: (3, [len(bits)]), 284: (3, [2 if planar else 1])}
    if tile:
        fields |= {322: (4, [tile[0]]), 323: (4, [tile[1]]), 324: (16 if big else 4, []), 325: (4, [len(part) for part in strips])}
    else:
        fields |= {273: (16 if big else 4, []), 278: (4, [rows_per_strip or height]), 279: (4, [len(part) for part in strips])}
    fields |= {int(name[1:]): value for name, value in tags.items()}
    offsets_tag = 324 if tile else 273
    start = 16 if big else 8
    body = b"".join(part + b"\0" * (len(part) % 2) for part in strips)
    place, offsets = start, []
    for part in strips:
        offsets.append(place)
        place += len(part) + len(part) % 2
    fields[offsets_tag] = (fields[offsets_tag][0], offsets)
    directory = start + len(body)
    entry, inline = (20, 8) if big else (12, 4)
    tail = directory + (8 if big else 2) + entry * len(fields) + (8 if big else 4)
    entries, extra = b"", b""
    for tag, (kind, values) in sorted(fields.items()):
        value = bytes(values) if SIZES[kind] == "B" else struct.pack(order + SIZES[kind] * len(values), *values)
        if len(value) > inline:
            place, pad = tail + len(extra), len(value) % 2
            extra += value + b"\0" * pad
            value = struct.pack(order + ("Q" if big else "I"), place)
        entries += struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, len(values)) + value.ljust(inline, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + (struct.pack(order + "HHHQ", 43, 8, 0, directory) if big else struct.pack(order + "HI", 42, directory))
    count = struct.pack(order + ("Q" if big else "H"), len(fields))
    return head + body + count + entries + struct.pack(order + ("Q" if big else "I"), 0) + extra


def packed(values, bits, order="<"):
    """Samples [height, width, channels] as bytes, each row padded to a byte."""
    values = np.asarray(values)
    if bits >= 8:
        return values.astype(values.dtype.newbyteorder(order)).tobytes()
    rows = values.reshape(values.shape[0], -1)
    spread = ((rows[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1).reshape(rows.shape[0], -1)
    return np.packbits(spread.astype(np.uint8), axis=1).tobytes()


# The list ------------------------------------------------------------------------------------------------------------------------------------


def orientations():
    for value in range(0, 11):
        yield f"jpeg exif {value}", jpeg((0xE1, b"Exif\0\0" + exif(value)))
        yield f"png eXIf before {value}", png(before=chunk(b"eXIf", exif(value)))
        yield f"png eXIf after {value}", png(after=chunk(b"eXIf", exif(value, order=">")))
        yield f"webp EXIF {value}", riff([(b"EXIF", exif(value))])
        yield f"tiff tag {value}", tiff(picture().tobytes(), [8, 8, 8], 2, t274=(3, [value]))
    block, other = exif(6), exif(3)
    for kind, name in [(1, "byte"), (2, "ascii"), (4, "long"), (5, "rational"), (6, "sbyte"), (8, "sshort"), (9, "slong"), (11, "float")]:
        yield f"jpeg exif of type {name}", jpeg((0xE1, b"Exif\0\0" + exif(6, kind=kind)))
        yield f"jpeg exif of type {name}, xmp 8", jpeg((0xE1, b"Exif\0\0" + exif(6, kind=kind)), (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(8)))
    yield "jpeg exif big-endian long", jpeg((0xE1, b"Exif\0\0" + exif(6, order=">", kind=4)))
    yield "jpeg exif two values", jpeg((0xE1, b"Exif\0\0" + exif(6, count=2)))
    yield "jpeg exif no value", jpeg((0xE1, b"Exif\0\0" + exif(6, count=0)))
    yield "jpeg exif value outside", jpeg((0xE1, b"Exif\0\0" + exif(6, count=2000)))
    yield "jpeg exif value outside, xmp 8", jpeg((0xE1, b"Exif\0\0" + exif(6, count=2000)), (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(8)))
    yield "jpeg exif tag twice", jpeg((0xE1, b"Exif\0\0" + exif(6, 3)))
    yield "jpeg exif prefix twice", jpeg((0xE1, b"Exif\0\0Exif\0\0" + block))
    yield "jpeg exif prefix three times", jpeg((0xE1, b"Exif\0\0Exif\0\0Exif\0\0" + block))
    yield "jpeg exif split", jpeg((0xE1, b"Exif\0\0" + block[:14]), (0xE1, b"Exif\0\0" + block[14:]))
    yield "jpeg exif split in three", jpeg(*((0xE1, b"Exif\0\0" + part) for part in (block[:5], block[5:14], block[14:])))
    yield "jpeg exif twice", jpeg((0xE1, b"Exif\0\0" + block), (0xE1, b"Exif\0\0" + other))
    yield "jpeg exif empty then 6", jpeg((0xE1, b"Exif\0\0"), (0xE1, b"Exif\0\0" + block))
    yield "jpeg exif cut", jpeg((0xE1, b"Exif\0\0" + block[:-8]))
    yield "jpeg exif without next", jpeg((0xE1, b"Exif\0\0" + block[:-4]))
    yield "jpeg exif bad magic", jpeg((0xE1, b"Exif\0\0II\0\x2a" + block[4:]))
    yield "jpeg exif far directory", jpeg((0xE1, b"Exif\0\0II\x2a\0\x20\0\0\0" + b"\0" * 24 + block[8:]))
    yield "jpeg exif prefix of other case", jpeg((0xE1, b"EXIF\0\0" + block))
    for value in (1, 3, 6, 8):
        yield f"jpeg xmp {value}", jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(value)))
        yield f"jpeg xmp element {value}", jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(value, True)))
    yield "jpeg xmp twice", jpeg(*((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(value)) for value in (6, 3)))
    yield "jpeg exif 1, xmp 6", jpeg((0xE1, b"Exif\0\0" + exif(1)), (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(6)))
    yield "jpeg exif without tag, xmp 6", jpeg((0xE1, b"Exif\0\0" + exif()), (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(6)))
    key = b"Raw profile type exif"
    for where in ("before", "after"):
        put = lambda data, where=where: png(**{where: data})
        yield f"png tEXt profile {where}", put(text(key, profile(block)))
        yield f"png tEXt profile with prefix {where}", put(text(key, profile(b"Exif\0\0" + block)))
        yield f"png zTXt profile {where}", put(ztext(key, profile(block)))
        yield f"png iTXt profile {where}", put(itext(key, profile(block)))
        yield f"png compressed iTXt profile {where}", put(itext(key, profile(block), True))
        yield f"png profile APP1 {where}", put(ztext(b"Raw profile type APP1", profile(b"Exif\0\0" + block)))
        yield f"png tEXt exif {where}", put(text(b"exif", b"Exif\0\0" + block))
        yield f"png XMP {where}", put(itext(b"XML:com.adobe.xmp", xmp(6)))
        yield f"png XMP element {where}", put(itext(b"XML:com.adobe.xmp", xmp(6, True)))
        yield f"png compressed XMP {where}", put(itext(b"XML:com.adobe.xmp", xmp(6), True))
        yield f"png tEXt XMP {where}", put(text(b"XML:com.adobe.xmp", xmp(6)))
        yield f"png zTXt XMP {where}", put(ztext(b"XML:com.adobe.xmp", xmp(6)))
        yield f"png XMP not UTF-8 {where}", put(itext(b"XML:com.adobe.xmp", xmp(6) + b"\xff"))
        yield f"png eXIf with prefix {where}", put(chunk(b"eXIf", b"Exif\0\0" + block))
        yield f"png eXIf twice {where}", put(chunk(b"eXIf", block) + chunk(b"eXIf", other))
    yield "png eXIf before and after", png(chunk(b"eXIf", other), chunk(b"eXIf", block))
    yield "png profile before, eXIf after", png(text(key, profile(other)), chunk(b"eXIf", block))
    yield "png eXIf before, profile after", png(chunk(b"eXIf", block), text(key, profile(other)))
    yield "png eXIf 1, XMP 6", png(chunk(b"eXIf", exif(1)), itext(b"XML:com.adobe.xmp", xmp(6)))
    yield "png eXIf without tag, XMP 6", png(chunk(b"eXIf", exif()), itext(b"XML:com.adobe.xmp", xmp(6)))
    yield "png XMP twice", png(itext(b"XML:com.adobe.xmp", xmp(3)), itext(b"XML:com.adobe.xmp", xmp(6)))
    yield "png profile on one line", png(text(key, b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"))
    yield "png profile in upper case", png(text(key, profile(block).upper().replace(b"EXIF", b"exif")))
    yield "png profile without its lines", png(text(key, block.hex().encode()))
    frames = [Image.fromarray(picture()), Image.fromarray(255 - picture())]
    animated = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield "apng", animated
    yield "apng eXIf at the end", animated[:-12] + chunk(b"eXIf", block) + animated[-12:]
    yield "webp EXIF with prefix", riff([(b"EXIF", b"Exif\0\0" + block)])
    yield "webp XMP", riff([(b"XMP ", xmp(6))])
    yield "webp EXIF 1, XMP 6", riff([(b"EXIF", exif(1)), (b"XMP ", xmp(6))])
    yield "webp EXIF without its flag", riff([(b"EXIF", block)], flags=0)
    yield "webp XMP without its flag", riff([(b"XMP ", xmp(6))], flags=0)
    yield "webp EXIF twice", riff([(b"EXIF", block), (b"EXIF", other)])
    yield "tiff XMP", tiff(picture().tobytes(), [8, 8, 8], 2, t700=(1, list(xmp(6))))
    yield "tiff tag 3, XMP 6", tiff(picture().tobytes(), [8, 8, 8], 2, t700=(1, list(xmp(6))), t274=(3, [3]))
    yield "tiff tag of type long", tiff(picture().tobytes(), [8, 8, 8], 2, t274=(4, [6]))
    yield "tiff big-endian tag", tiff(picture().tobytes(), [8, 8, 8], 2, order=">", t274=(3, [6]))
    yield "bigtiff tag", tiff(picture().tobytes(), [8, 8, 8], 2, big=True, t274=(3, [6]))


def gifs():
    plain = saved(Image.fromarray(picture()).quantize(64), "GIF")
    yield "gif", plain
    yield "gif gray", saved(Image.fromarray(picture()[:, :, 0]), "GIF")
    yield "gif animated", saved(Image.fromarray(picture()).quantize(64), "GIF", save_all=True, append_images=[Image.fromarray(255 - picture()).quantize(64)])
    yield "gif interlaced", saved(Image.fromarray(picture()).quantize(64), "GIF", interlace=1)
    for background, transparent in itertools.product((0, 2), (None, 3)):
        kind = f"background {background}, transparent {transparent}"
        yield f"gif offset frame, {kind}", gif((12, 10), (3, 2, 5, 4), background, transparent, PALETTE)
        yield f"gif offset frame, local palette, {kind}", gif((12, 10), (3, 2, 5, 4), background, transparent, PALETTE, PALETTE[::-1])
        yield f"gif frame larger, {kind}", gif((6, 5), (0, 0, 12, 10), background, transparent, PALETTE)
        yield f"gif frame beyond, {kind}", gif((6, 5), (4, 3, 7, 6), background, transparent, PALETTE)
        yield f"gif frame outside, {kind}", gif((6, 5), (9, 8, 4, 4), background, transparent, PALETTE)
        yield f"gif wider only, {kind}", gif((6, 9), (2, 1, 9, 3), background, transparent, PALETTE)
    yield "gif screen of no size", gif((0, 0), (0, 0, 7, 6), 0, None, PALETTE)
    yield "gif no palette", gif((12, 10), (3, 2, 5, 4), 2, None, None)
    yield "gif no palette, transparent", gif((12, 10), (3, 2, 5, 4), 2, 3, None)
    yield "gif local palette only", gif((12, 10), (3, 2, 5, 4), 2, None, None, PALETTE)
    ramp = [(i, i, i) for i in range(8)]
    yield "gif gray ramp as palette", gif((12, 10), (3, 2, 5, 4), 2, None, ramp)
    yield "gif local gray ramp", gif((12, 10), (3, 2, 5, 4), 2, None, PALETTE, ramp)
    yield "gif index beyond the palette", gif((12, 10), (3, 2, 5, 4), 200, None, PALETTE, fill=[0, 1, 200, 7, 255] * 4)
    yield "gif transparent index beyond the palette", gif((12, 10), (3, 2, 5, 4), 0, 99, PALETTE)
    yield "gif87", gif((12, 10), (3, 2, 5, 4), 2, None, PALETTE, version=b"GIF87a")


def pngs():
    gray, color = picture()[:, :, 0], picture()
    for depth in (1, 2, 4, 8, 16):
        top = (1 << depth) - 1
        values = (gray.astype(np.uint32) * top // 255) if depth < 16 else gray.astype(np.uint32) * 257 // 128
        rows = [packed(row[None, :, None].astype(np.uint16 if depth == 16 else np.uint8), depth, ">") for row in values]
        value = int(values[3, 5])
        yield f"png gray{depth}", png_of(rows, WIDTH, HEIGHT, depth, 0)
        yield f"png gray{depth} tRNS", png_of(rows, WIDTH, HEIGHT, depth, 0, chunk(b"tRNS", struct.pack(">H", value)))
        if depth < 16:
            colors = np.random.default_rng(SEED).integers(0, 256, (top + 1, 3)).astype(np.uint8)
            yield f"png palette{depth}", png_of(rows, WIDTH, HEIGHT, depth, 3, chunk(b"PLTE", colors.tobytes()))
            yield f"png palette{depth} tRNS", png_of(rows, WIDTH, HEIGHT, depth, 3, chunk(b"PLTE", colors.tobytes()) + chunk(b"tRNS", bytes([0, 128])))
            short = colors[: (top + 1) // 2]
            yield f"png palette{depth} too short", png_of(rows, WIDTH, HEIGHT, depth, 3, chunk(b"PLTE", short.tobytes()))
    wide = color.astype(np.uint16) * 257 - 3
    full = gray.astype(np.uint16) * 257
    rows16 = [packed(row[None], 16, ">") for row in wide]
    yield "png gray16 full", png_of([packed(row[None, :, None], 16, ">") for row in full], WIDTH, HEIGHT, 16, 0)
    yield "png gray16 full tRNS", png_of([packed(row[None, :, None], 16, ">") for row in full], WIDTH, HEIGHT, 16, 0, chunk(b"tRNS", struct.pack(">H", int(full[1, 1]))))
    yield "png rgb8", png()
    yield "png rgb8 tRNS", png(before=chunk(b"tRNS", struct.pack(">HHH", *map(int, color[3, 5]))))
    yield "png rgb16", png_of(rows16, WIDTH, HEIGHT, 16, 2)
    yield "png rgb16 tRNS", png_of(rows16, WIDTH, HEIGHT, 16, 2, chunk(b"tRNS", struct.pack(">HHH", *map(int, wide[3, 5]))))
    alpha = np.concatenate([color, color[:, :, :1]], axis=2)
    yield "png rgba8", png_of([row.tobytes() for row in alpha], WIDTH, HEIGHT, 8, 6)
    yield "png rgba16", png_of([packed(row[None], 16, ">") for row in alpha.astype(np.uint16) * 257 - 3], WIDTH, HEIGHT, 16, 6)
    yield "png gray alpha8", png_of([row[:, :2].tobytes() for row in color], WIDTH, HEIGHT, 8, 4)
    yield "png gray alpha16", png_of([packed(row[None, :, :2], 16, ">") for row in wide], WIDTH, HEIGHT, 16, 4)


def others():
    image = Image.fromarray(picture())
    gray = Image.fromarray(picture()[:, :, 0])
    alpha = Image.frombytes("RGBA", (WIDTH, HEIGHT), picture(channels=4).tobytes())
    yield "webp lossy", saved(image, "WEBP", quality=95)
    yield "webp lossless", saved(image, "WEBP", lossless=True)
    yield "webp lossless alpha", saved(alpha, "WEBP", lossless=True, exact=True)
    yield "webp animated", saved(image, "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(255 - picture())])
    yield "jpeg", saved(image, "JPEG")
    yield "jpeg progressive", saved(image, "JPEG", progressive=True)
    yield "jpeg gray", saved(gray, "JPEG")
    yield "jpeg cmyk", saved(image.convert("CMYK"), "JPEG")
    for subsampling in (0, 1, 2):
        yield f"jpeg subsampling {subsampling}", saved(image, "JPEG", subsampling=subsampling)
    pixels = picture()
    bgr = [row[:, ::-1].tobytes() for row in pixels]
    colors = np.random.default_rng(SEED).integers(0, 256, (256, 4)).astype(np.uint8)
    colors[:, 3] = 0
    yield "bmp 24", bmp(24, bgr)
    yield "bmp 24 top-down", bmp(24, bgr, top_down=True)
    yield "bmp 24 os2", bmp(24, bgr, header=12)
    bgrx = [np.concatenate([row[:, ::-1], row[:, :1]], axis=1).tobytes() for row in pixels]
    yield "bmp 32", bmp(32, bgrx)
    yield "bmp 32 bitfields", bmp(32, bgrx, compression=3, masks=struct.pack("<III", 0xFF0000, 0xFF00, 0xFF))
    yield "bmp 32 v4 alpha", bmp(32, bgrx, compression=3, masks=struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000), header=108)
    for bits in (1, 4, 8):
        rows = [packed((row[None, :, :1] >> (8 - bits)), bits) for row in pixels]
        yield f"bmp {bits}", bmp(bits, rows, colors[: 1 << bits].tobytes())
    five = [(((row[:, 0] >> 3).astype("<u2") << 10) | ((row[:, 1] >> 3).astype("<u2") << 5) | (row[:, 2] >> 3)).astype("<u2").tobytes() for row in pixels]
    six = [(((row[:, 0] >> 3).astype("<u2") << 11) | ((row[:, 1] >> 2).astype("<u2") << 5) | (row[:, 2] >> 3)).astype("<u2").tobytes() for row in pixels]
    yield "bmp 16", bmp(16, five)
    yield "bmp 16 bitfields 565", bmp(16, six, compression=3, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F))
    run = b"".join(b"".join(bytes([1, value]) for value in row[:, 0]) + b"\0\0" for row in pixels[::-1]) + b"\0\1"
    yield "bmp 8 rle", bmp(8, [run], colors.tobytes(), compression=1)


def tiffs():
    color, gray = picture(), picture()[:, :, :1]
    rgb, image = [8, 8, 8], Image.fromarray(picture())
    four = picture(channels=4)
    for order, big in (("<", False), (">", False), ("<", True), (">", True)):
        kind = f"{'big' if big else ''}tiff {'II' if order == '<' else 'MM'}"
        make = lambda *arguments, order=order, big=big, **tags: tiff(*arguments, order=order, big=big, **tags)
        yield f"{kind} rgb8", make(color.tobytes(), rgb, 2)
        yield f"{kind} rgb16", make(packed(color.astype(np.uint16) * 257 - 3, 16, order), [16] * 3, 2)
        yield f"{kind} gray16", make(packed(gray.astype(np.uint16) * 2, 16, order), [16], 1)
        yield f"{kind} gray16 white is zero", make(packed(gray.astype(np.uint16) * 2, 16, order), [16], 0)
        yield f"{kind} gray int16", make(packed(gray.astype(np.int16) * 3 - 200, 16, order), [16], 1, t339=(3, [2]))
        yield f"{kind} gray uint32", make(packed(gray.astype(np.uint32) * 2 + (np.arange(WIDTH)[None, :, None] % 2 << 31).astype(np.uint32), 32, order), [32], 1)
        yield f"{kind} gray int32", make(packed(gray.astype(np.int32) * 3 - 200, 32, order), [32], 1, t339=(3, [2]))
        floats = gray.astype(np.float32) * 2.5 - 100.3
        yield f"{kind} gray float32", make(packed(floats, 32, order), [32], 1, t339=(3, [3]))
        yield f"{kind} gray float32 white is zero", make(packed(floats, 32, order), [32], 0, t339=(3, [3]))
        for bits in (1, 2, 4, 8):
            values = gray >> (8 - bits)
            yield f"{kind} gray{bits}", make(packed(values, bits), [bits], 1)
            yield f"{kind} gray{bits} white is zero", make(packed(values, bits), [bits], 0)
            table = np.random.default_rng(SEED).integers(0, 65536, 3 << bits).tolist()
            yield f"{kind} palette{bits}", make(packed(values, bits), [bits], 3, t320=(3, table))
    table = np.random.default_rng(SEED).integers(0, 65536, 768).tolist()
    yield "tiff gray8 signed", tiff(gray.tobytes(), [8], 1, t339=(3, [2]))
    yield "tiff gray 12", tiff(np.packbits(np.unpackbits((gray.astype(">u2") * 9)[..., None].view(np.uint8), axis=-1).reshape(HEIGHT, WIDTH, 16)[:, :, 4:].reshape(HEIGHT, -1), axis=1).tobytes(), [12], 1)
    for extra in (0, 1, 2):
        yield f"tiff gray8 extra {extra}", tiff(color[:, :, :2].tobytes(), [8, 8], 1, t338=(3, [extra]))
        yield f"tiff gray16 extra {extra}", tiff(packed(color[:, :, :2].astype(np.uint16) * 257, 16), [16, 16], 1, t338=(3, [extra]))
        yield f"tiff palette8 extra {extra}", tiff(color[:, :, :2].tobytes(), [8, 8], 3, t320=(3, table), t338=(3, [extra]))
        yield f"tiff rgb8 extra {extra}", tiff(four.tobytes(), [8] * 4, 2, t338=(3, [extra]))
        yield f"tiff rgb8 extra {extra} MM", tiff(four.tobytes(), [8] * 4, 2, order=">", t338=(3, [extra]))
        yield f"tiff rgb16 extra {extra}", tiff(packed(four.astype(np.uint16) * 257 - 2, 16), [16] * 4, 2, t338=(3, [extra]))
        more = np.concatenate([four, gray], axis=2)
        yield f"tiff rgb8 extra {extra}, 0", tiff(more.tobytes(), [8] * 5, 2, t338=(3, [extra, 0]))
    yield "tiff rgba8 without extra", tiff(four.tobytes(), [8] * 4, 2)
    yield "tiff cmyk8", tiff(four.tobytes(), [8] * 4, 5)
    yield "tiff cmyk16", tiff(packed(four.astype(np.uint16) * 257 - 2, 16), [16] * 4, 5)
    yield "tiff cmyk8 extra 0", tiff(np.concatenate([four, gray], axis=2).tobytes(), [8] * 5, 5, t338=(3, [0]))
    yield "tiff cmyk8 planar", tiff(b"", [8] * 4, 5, planar=True, strips=[four[:, :, i].tobytes() for i in range(4)])
    yield "tiff ycbcr 4:4:4", tiff(color.tobytes(), rgb, 6, t530=(3, [1, 1]))
    yield "tiff ycbcr deflate 4:4:4", tiff(zlib.compress(color.tobytes()), rgb, 6, t530=(3, [1, 1]), t259=(3, [8]))
    yield "tiff lab", tiff(color.tobytes(), rgb, 8)
    grid = np.stack(np.meshgrid(np.arange(0, 256, 7), np.arange(0, 256, 11), indexing="xy"), axis=2).astype(np.uint8)[:HEIGHT, :WIDTH]
    yield "tiff lab wide", tiff(np.concatenate([grid, grid[:, ::-1, 1:]], axis=2).tobytes(), rgb, 8, size=(grid.shape[1], grid.shape[0]))
    yield "tiff icc lab", tiff(color.tobytes(), rgb, 9)
    yield "tiff rgb float32", tiff(packed(color.astype(np.float32), 32), [32] * 3, 2, t339=(3, [3] * 3))
    yield "tiff gray float64", tiff(packed(gray.astype(np.float64), 64), [64], 1, t339=(3, [3]))
    yield "tiff gray float16", tiff(packed(gray.astype(np.float16), 16), [16], 1, t339=(3, [3]))
    yield "tiff rgb planar", tiff(b"", rgb, 2, planar=True, strips=[color[:, :, i].tobytes() for i in range(3)])
    yield "tiff rgb planar extra 0", tiff(b"", [8] * 4, 2, planar=True, strips=[four[:, :, i].tobytes() for i in range(4)], t338=(3, [0]))
    yield "tiff rgb16 planar", tiff(b"", [16] * 3, 2, planar=True, strips=[packed(color[:, :, i : i + 1].astype(np.uint16) * 257, 16) for i in range(3)])
    strips = lambda data, rows: [data[y : y + rows] for y in range(0, HEIGHT, rows)]
    yield "tiff rgb strips", tiff(b"", rgb, 2, rows_per_strip=5, strips=[part.tobytes() for part in strips(color, 5)])
    yield "tiff rgb planar strips", tiff(b"", rgb, 2, planar=True, rows_per_strip=5, strips=[part.tobytes() for i in range(3) for part in strips(color[:, :, i], 5)])
    yield "tiff palette8 deflate strips", tiff(b"", [8], 3, rows_per_strip=5, strips=[zlib.compress(part.tobytes()) for part in strips(gray, 5)], t259=(3, [8]), t320=(3, table))

    def tiles(values, size=16):
        for y, x in itertools.product(range(0, HEIGHT, size), range(0, WIDTH, size)):
            part = values[y : y + size, x : x + size]
            yield np.pad(part, ((0, size - part.shape[0]), (0, size - part.shape[1])) + ((0, 0),) * (part.ndim - 2))

    for name, values, bits, photometric, tags in (
        ("rgb", color, rgb, 2, {}), ("gray", gray, [8], 1, {}), ("palette8", gray, [8], 3, {"t320": (3, table)}), ("cmyk", four, [8] * 4, 5, {}),
        ("gray16", gray.astype(np.uint16) * 3, [16], 1, {}),
    ):
        for method, compress in ((1, bytes), (8, zlib.compress)):
            parts = [compress(packed(part, bits[0])) for part in tiles(values)]
            yield f"tiff {name} tiles, compression {method}", tiff(b"", bits, photometric, tile=(16, 16), strips=parts, t259=(3, [method]), **tags)
    bits1 = [packed(part, 1) for part in tiles(gray >> 7)]
    yield "tiff gray1 tiles", tiff(b"", [1], 1, tile=(16, 16), strips=bits1)
    planes = [part.tobytes() for i in range(3) for part in tiles(color[:, :, i])]
    yield "tiff rgb planar tiles", tiff(b"", rgb, 2, planar=True, tile=(16, 16), strips=planes)
    differences = np.diff(color.astype(np.int16), axis=1, prepend=0).astype(np.uint8)
    yield "tiff rgb predictor", tiff(zlib.compress(differences.tobytes()), rgb, 2, t259=(3, [8]), t317=(3, [2]))
    yield "tiff palette8 predictor", tiff(zlib.compress(differences[:, :, :1].tobytes()), [8], 3, t259=(3, [8]), t317=(3, [2]), t320=(3, table))
    reverse = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
    yield "tiff gray8 fill order 2", tiff(gray.tobytes().translate(reverse), [8], 1, t266=(3, [2]))
    yield "tiff gray1 fill order 2", tiff(packed(gray >> 7, 1).translate(reverse), [1], 0, t266=(3, [2]))
    yield "tiff rgb8 fill order 2", tiff(color.tobytes().translate(reverse), rgb, 2, t266=(3, [2]))
    yield "tiff gray16 fill order 2", tiff(packed(gray.astype(np.uint16) * 3, 16).translate(reverse), [16], 1, t266=(3, [2]))
    yield "tiff palette8 short table", tiff(gray.tobytes(), [8], 3, t320=(3, table[:300]))
    modes = {"rgb": image, "gray": image.convert("L"), "palette": image.quantize(64), "rgba": image.convert("RGBA"), "1 bit": image.convert("1"), "cmyk": image.convert("CMYK")}
    for method in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma", "jpeg", "webp", "group3", "group4", "tiff_ccitt"):
        for name, source in modes.items():
            try:
                yield f"tiff {name} {method}", saved(source, "TIFF", compression=method)
            except (OSError, ValueError, KeyError):
                pass
    yield "tiff ycbcr jpeg", saved(image.convert("YCbCr"), "TIFF", compression="jpeg")
    large = Image.fromarray(picture(300, 200))
    yield "tiff rgb jpeg large", saved(large, "TIFF", compression="jpeg")
    yield "tiff ycbcr jpeg large", saved(large.convert("YCbCr"), "TIFF", compression="jpeg")
    yield "tiff ycbcr lzw", saved(image.convert("YCbCr"), "TIFF", compression="tiff_lzw")
    yield "tiff group4 fill order 2", saved(modes["1 bit"], "TIFF", compression="group4", tiffinfo={266: 2})
    yield "tiff pages", saved(image, "TIFF", save_all=True, append_images=[modes["gray"]])
    yield "tiff lab by Pillow", saved(Image.frombytes("LAB", (WIDTH, HEIGHT), picture().tobytes()), "TIFF")
    yield "tiff float by Pillow", saved(image.convert("F"), "TIFF")
    yield "tiff I by Pillow", saved(image.convert("I"), "TIFF")
    yield "tiff LA by Pillow", saved(image.convert("LA"), "TIFF")


def all_kinds():
    for group in (orientations, gifs, pngs, others, tiffs):
        for name, data in group():
            yield group.__name__, name, data
