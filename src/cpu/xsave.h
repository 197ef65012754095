/* Where XSAVE's area has what (Intel SDM vol. 1, §10.5.1 and §13.4): the legacy region, which is FXSAVE's, the header, and the
 * components of the standard format. */
#ifndef RING3_CPU_XSAVE_H
#define RING3_CPU_XSAVE_H

#define XSAVE_LEGACY 512u /* bytes of the legacy region; the header follows: XSTATE_BV, XCOMP_BV, 48 reserved bytes */
#define XSAVE_EXTENDED 576u /* where the components from AVX on may begin */

/* In the legacy region. */
#define FX_FCW 0
#define FX_FSW 2
#define FX_TAG 4
#define FX_FOP 6
#define FX_FIP 8
#define FX_FDP 16
#define FX_MXCSR 24
#define FX_ST 32 /* 16 bytes each */
#define FX_XMM 160

/* State components by their bits in XCR0. */
enum xsave_component {
    COMP_X87,
    COMP_SSE,
    COMP_AVX,
    COMP_K = 5,
    COMP_ZMM_HI256,
    COMP_HI16_ZMM,
    COMP_COUNT,
};

#endif
