"""Which kind of file an extension means.

Pure. The kinds are what people keep on a NAS and ask about; an extension belongs to one kind only, the
one most of its files are of (.ts is taken for video, as on most NAS, and not for TypeScript).
"""

from __future__ import annotations

KINDS: dict[str, str] = {
    "photos":
        "jpg jpeg jpe jfif png gif bmp tif tiff webp heic heif avif jxl jp2 psd psb xcf svg ico tga "
        "exr hdr raw dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw x3f 3fr iiq erf mef "
        "mos kdc dcr rwl xmp thm",
    "videos":
        "mp4 m4v mkv avi mov qt wmv flv f4v webm mpg mpeg mpe m2v mpv m2ts mts ts vob ogv ogm 3gp "
        "3g2 rm rmvb asf divx dv mxf braw r3d insv wtv dvr-ms m2p tod mod",
    "subtitles": "srt sub idx ass ssa vtt sup smi",
    "music":
        "mp3 flac m4a m4b aac ogg oga opus wav wma aif aiff aifc ape wv alac dsf dff mka ac3 eac3 "
        "dts mid midi mpc tta tak amr caf au ra m3u m3u8 pls cue",
    "documents":
        "pdf doc docx docm dot dotx xls xlsx xlsm xlsb xlt ppt pptx pptm pps ppsx odt ods odp odg "
        "odf rtf tex pages numbers key vsd vsdx pub one xps ps eps wpd wps msg eml mbox pst ost",
    "books": "epub mobi azw azw3 azw4 kfx fb2 lit djvu djv cbz cbr cb7 cbt ibooks",
    "text": "txt md rst log csv tsv nfo diz text asc readme rtfd org adoc",
    "archives":
        "zip rar 7z tar gz tgz bz2 tbz tbz2 xz txz zst tzst lz lz4 lzma lzo br z cab arj ace lha "
        "lzh sit sitx cpio par2 par nzb r00 r01 r02 r03 r04 r05 r06 r07 r08 r09 001 002 003",
    "disk images":
        "iso img bin nrg mdf mds ccd dmg toast vhd vhdx vmdk vdi qcow qcow2 qed ova ovf hdd vmem "
        "vmsn vmss sparseimage sparsebundle wim esd swm ima dd e01 vbk vib",
    "backups": "bak bkf bkp backup old orig tib tibx mrimg gho v2i spf spi fbk abk wbcat borg",
    "databases":
        "db db3 sqlite sqlite3 sqlite-wal sqlite-shm db-wal db-shm mdb accdb ldb ldf ibd frm myd "
        "myi dbf sql dump rdb aof parquet feather arrow orc hdf5 h5 nc mdbx lmdb",
    "code":
        "c h cc cpp cxx hh hpp hxx cs java kt kts scala go rs py pyi pyx rb pl pm php js mjs cjs "
        "jsx tsx vue svelte swift m mm f f90 f95 lua r jl hs ml ex exs erl clj lisp el asm s v sh "
        "bash zsh fish bat cmd ps1 vb vbs html htm css scss sass less xml json json5 jsonl yaml yml "
        "toml ini cfg conf properties cmake mk gradle proto ipynb po pot diff patch map lock wasm",
    "programs":
        "exe msi dll so o a lib dylib sys apk ipa aab deb rpm appimage snap flatpak jar war ear "
        "class pyc pyo pyd whl egg gem ko elf app com cpl drv ocx pkg run xpi crx vsix nupkg rom "
        "nsp xci",
    "fonts": "ttf otf ttc woff woff2 eot pfb pfm afm fon",
    "models":
        "stl obj 3mf step stp iges igs fbx gltf glb dae blend max ma mb 3ds dwg dxf skp f3d sldprt "
        "sldasm scad gcode ply usd usdz usdc safetensors gguf ggml onnx pt pth ckpt pkl npz npy "
        "tflite",
    "unfinished": "part partial crdownload download tmp temp aria2 swp swo",
}

NO_EXTENSION = "no extension"
OTHER = "other"

_KIND = {extension: kind for kind, extensions in KINDS.items() for extension in extensions.split()}


def kind(extension: str) -> str:
    """Tell the kind of a lower-case extension without its dot; '' is a name without one."""
    return _KIND.get(extension, OTHER) if extension else NO_EXTENSION
