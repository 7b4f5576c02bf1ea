// What Yosys' own mapping to ECP5 makes larger than it need be (sim/ecp5.py).

// Adders as carry chains. The first half of the first cell makes the carry in, so that nextpnr need not add a
// cell to feed it (the CIN of that cell may be anything); the carry out is a sum bit where a half is left over.
// Constant BI is in the LUTs, not on a pin. Narrow adders are left to LUTs.

(* techmap_celltype = "$alu" *)
module ecp5_alu (A, B, CI, BI, X, Y, CO);
  parameter A_SIGNED = 0;
  parameter B_SIGNED = 0;
  parameter A_WIDTH = 1;
  parameter B_WIDTH = 1;
  parameter Y_WIDTH = 1;
  parameter _TECHMAP_CONSTMSK_BI_ = 0;
  parameter _TECHMAP_CONSTVAL_BI_ = 0;

  (* force_downto *) input [A_WIDTH-1:0] A;
  (* force_downto *) input [B_WIDTH-1:0] B;
  input CI, BI;
  (* force_downto *) output [Y_WIDTH-1:0] X, Y, CO;

  (* force_downto *) wire [Y_WIDTH-1:0] a, b;
  \$pos #(.A_SIGNED(A_SIGNED), .A_WIDTH(A_WIDTH), .Y_WIDTH(Y_WIDTH)) extend_a (.A(A), .Y(a));
  \$pos #(.A_SIGNED(B_SIGNED), .A_WIDTH(B_WIDTH), .Y_WIDTH(Y_WIDTH)) extend_b (.A(B), .Y(b));

  // A half propagates where INIT[{D, C, B, A}] = 1 and else generates INIT[{0, 0, B, A}]; its sum is
  // propagate ^ carry. Bit k of the sum is in half k + 1.
  localparam CELLS = Y_WIDTH / 2 + 1;
  localparam [15:0] CARRY_IN = 16'h000A;
  localparam [15:0] ADD = !_TECHMAP_CONSTMSK_BI_ ? 16'h96AA : _TECHMAP_CONSTVAL_BI_ ? 16'h999A : 16'h666A;
  localparam SPARE = Y_WIDTH % 2 == 0;
  wire invert = _TECHMAP_CONSTMSK_BI_ ? 1'b1 : BI;
  wire [2*CELLS-1:0] aa = {1'b1, a, CI};
  wire [2*CELLS-1:0] bb = {1'b1, b, 1'b1};
  wire [2*CELLS-1:0] sum;
  wire [CELLS-1:0] carry;

  assign X = a ^ b ^ {Y_WIDTH{BI}};
  assign Y = sum[Y_WIDTH:1];
  assign CO[Y_WIDTH-1] = SPARE ? sum[Y_WIDTH+SPARE] : carry[CELLS-1];
  generate
    if (Y_WIDTH > 1)
      assign CO[Y_WIDTH-2:0] = Y[Y_WIDTH-1:1] ^ X[Y_WIDTH-1:1];
    genvar k;
    for (k = 0; k < CELLS; k = k + 1) begin : pair
      CCU2C #(
        .INIT0(k == 0 ? CARRY_IN : ADD),
        .INIT1(SPARE && k == CELLS - 1 ? 16'h0000 : ADD),
        .INJECT1_0("NO"),
        .INJECT1_1("NO")
      ) cell_ (
        .CIN(k == 0 ? 1'bx : carry[k-1]),
        .A0(aa[2*k]), .B0(bb[2*k]), .C0(k == 0 ? 1'b1 : invert), .D0(1'b1),
        .A1(aa[2*k+1]), .B1(bb[2*k+1]), .C1(SPARE && k == CELLS - 1 ? 1'b1 : invert), .D1(1'b1),
        .S0(sum[2*k]), .S1(sum[2*k+1]), .COUT(carry[k])
      );
    end
  endgenerate
endmodule

// A multiplexer of four in two LUTs, for which ABC takes three: `low` is T ? S : (S ? B : A), and so tells the
// second LUT what to choose where T is set.

(* techmap_celltype = "$_MUX4_" *)
module ecp5_mux4 (A, B, C, D, S, T, Y);
  input A, B, C, D, S, T;
  output Y;
  wire low;
  LUT4 #(.INIT(16'hF0CA)) first (.A(A), .B(B), .C(S), .D(T), .Z(low));
  LUT4 #(.INIT(16'hE4AA)) second (.A(low), .B(C), .C(D), .D(T), .Z(Y));
endmodule
